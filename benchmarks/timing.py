"""Interleaved timing: contenders alternate, so that a slow spell of the machine meets all."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Timed(NamedTuple):
    """A contender that is compiled and warm; each call returns its seconds."""

    call: Callable[[], float]
    temporary_bytes: int | None


def interleaved(
    contenders: Mapping[str, Callable[[], float]],
    seconds: float,
    most: int = 200,
    failed: Callable[[str, Exception], Any] | None = None,
) -> dict[str, list[float]]:
    """Time single calls in turns until the time is used up; every contender has at least three.

    Every turn has another order, because a contender pays for the caches that the one before it
    filled. A contender that fails is given to `failed` and left out.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    share = seconds / max(len(contenders), 1)
    order = random.Random(0)  # noqa: S311
    while True:
        pending = [n for n, t in times.items() if len(t) < 3 or (sum(t) < share and len(t) < most)]
        if not pending:
            return times
        order.shuffle(pending)
        for name in pending:
            try:
                times[name].append(contenders[name]())
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
                del times[name]


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Warm a function up; return one that times a call in seconds."""
    call()
    call()

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return once


def spread(times: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles in milliseconds."""
    low, middle, high = np.percentile(times, [25, 50, 75]) * 1e3
    return float(middle), float(low), float(high)


class Elsewhere:
    """A benchmark in another interpreter, for peers that cannot be installed together."""

    def __init__(self, python: str, module: str):
        self.process = subprocess.Popen(  # noqa: S603
            [python, "-m", module, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer, each a line of JSON."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the other process."""
        self.process.communicate(timeout=30)


def serve(prepare: Callable[..., Timed]) -> None:
    """Answer `Elsewhere`: "prepare" builds a contender, "time" calls it once."""
    answers = sys.stdout
    ready: dict[str, Timed] = {}
    sys.stdout = sys.stderr  # the output of a library is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                ready[request["name"]] = prepare(request["name"], request["n"])
                answer: Any = {"temporary_bytes": ready[request["name"]].temporary_bytes}
            else:
                answer = ready[request["name"]].call()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
