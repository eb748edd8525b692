"""Open a page in headless Chromium, by chromedriver's HTTP interface."""

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--hide-scrollbars", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage"),
)


def missing():
    """Return the names of the missing programs."""
    return [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


class Browser:
    """A session of Chromium."""

    def __init__(self, port, session):
        self._port, self._session = port, session

    def _post(self, path, **parameters):
        return _request(self._port, "POST", f"{self._session}/{path}", parameters)

    def devtools(self, command, **parameters):
        return self._post("goog/cdp/execute", cmd=command, params=parameters)

    def open(self, path, *, width=1280, height=900, dark=False):
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self._post("url", url=path.resolve().as_uri())

    def run(self, script):
        """Run the body of a function; return its value."""
        return self._post("execute/sync", script=script, args=[])

    def console(self):
        """Return the page's complaints since the last call."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def requests(self):
        """Return the requested addresses since the last call."""
        entries = self._post("se/log", type="performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def picture(self, path):
        """Save the whole page as a PNG."""
        taken = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def browser():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [shutil.which("chromedriver"), f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            # A new tab would load the browser's own pages, which make requests.
            start = {"session.restore_on_startup": 4, "session.startup_urls": ["about:blank"]}
            arguments = [*FLAGS, f"--user-data-dir={profile}"]
            options = {"binary": shutil.which("chromium"), "args": arguments, "prefs": start}
            capabilities = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            _wait_for(port)
            session = _request(
                port, "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}
            )["sessionId"]
            try:
                yield Browser(port, f"/session/{session}")
            finally:
                _request(port, "DELETE", f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(timeout=30)


def _wait_for(port):
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError("chromedriver does not answer")


def _request(port, method, path, parameters=None):
    connection = http.client.HTTPConnection("localhost", port, timeout=120)
    try:
        body = None if parameters is None else json.dumps(parameters)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())["value"]
    finally:
        connection.close()
    if isinstance(answer, dict) and "error" in answer:
        raise RuntimeError(f"{answer['error']}: {answer.get('message', '')[:500]}")
    return answer
