"""A wrong address, stored config or folder is refused before a job starts."""

import json

import pytest

from pcjax._checks import RequestError
from pcjax.config import Config
from pcjax.display import Display
from pcjax.multihost import join_processes
from pcjax.run import open_run


@pytest.mark.parametrize(
    "address",
    ["", "foo", "foo:", ":1", "a b:1", "foo:x", "foo:0", "foo:65536", "http://foo:1", "foo:\u0661"],
)
def test_a_malformed_address_is_refused(address, monkeypatch):
    for name, value in (("COORDINATOR", address), ("PROCESSES", "2"), ("PROCESS", "0")):
        monkeypatch.setenv(f"PCJAX_{name}", value)
    with pytest.raises(RequestError, match=r"PCJAX_COORDINATOR='.*' is not HOST:PORT"):
        join_processes()


def test_a_refusal_within_a_stored_config_ends_the_command(command, tmp_path):
    stored = {"job": "distill", "config": json.loads(Config().to_json())}
    stored["config"]["teacher"]["features"] = ""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(stored))
    status, _, complaint = command("distill", path)
    assert status == 2
    refusal = "teacher.features is empty; give a path or leave it out."
    assert complaint == f"pcjax: {path}: {refusal}\n"


def test_an_unfinished_config_alone_is_not_a_run(tmp_path):
    (tmp_path / "config.json.unfinished").write_text('{"job": ')
    open_run(tmp_path, Config(), "distill", Display())
    (tmp_path / "notes").touch()
    with pytest.raises(RequestError, match="neither empty nor a run"):
        open_run(tmp_path, Config(), "distill", Display())
