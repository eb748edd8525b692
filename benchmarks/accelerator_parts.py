"""The measurements of `benchmarks.accelerator`; each returns what JSON can hold."""

import contextlib
import functools
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

import pcjax
from benchmarks.bare_loop import rates
from benchmarks.contenders import CONTENDERS, compiled
from benchmarks.timing import interleaved, spread, timed
from pcjax import _sorting
from pcjax.ranking import METHODS, hard_rank, soft_rank

ROWS = 16
TEMPERATURE = 0.1
SECONDS = 6  # of timing in turns
# Beyond these sizes a peer takes minutes or does not fit on a GPU either.
LARGEST = {
    "pcjax logistic": 4096,
    "pcjax permutahedron": 8192,
    "pcjax laplace, chunks of 256": 32768,
    "torchsort": 8192,
    "rkd distance": 16384,
    "softjax softsort": 1024,
    "softjax neuralsort": 1024,
    "softjax fast_soft_sort": 2048,
    "rax approx_ranks": 1024,
    "ott-jax ranks": 256,
}
Rows = np.ndarray


def laplace_ranks(x: Rows) -> Rows:
    """Compute the soft ranks of rows in float64, one entry after the other."""
    order = np.argsort(x, axis=1, kind="stable")
    s = np.take_along_axis(x, order, axis=1) / TEMPERATURE
    decay = np.exp(-np.diff(s, axis=1))
    n = x.shape[1]
    below, above = np.zeros_like(s), np.zeros_like(s)
    for k in range(1, n):
        below[:, k] = decay[:, k - 1] * (1 + below[:, k - 1])
        above[:, n - 1 - k] = decay[:, n - 1 - k] * (1 + above[:, n - k])
    ranks = np.empty_like(s)
    np.put_along_axis(ranks, order, np.arange(1, n + 1) + (above - below) / 2, axis=1)
    return ranks


def logistic_ranks(x: Rows) -> Rows:
    """Compute the soft ranks of rows in float64, pair by pair."""
    u = np.clip((x[:, :, None] - x[:, None]) / TEMPERATURE, -700, 700)
    return 0.5 + np.sum(1 / (1 + np.exp(-u)), axis=2)


def permutahedron_ranks(x: Rows) -> Rows:
    """Project rows in float64 by pool-adjacent-violators."""
    ranks = np.empty_like(x)
    for row, result in zip(x / TEMPERATURE, ranks, strict=True):
        order = np.argsort(-row)
        w = np.arange(len(row), 0, -1)
        pooled = scipy.optimize.isotonic_regression(row[order] - w, increasing=False).x
        result[order] = row[order] - pooled
    return ranks


ORACLES: dict[str, Callable[[Rows], Rows]] = {
    "laplace": laplace_ranks,
    "logistic": logistic_ranks,
    "permutahedron": permutahedron_ranks,
}


def loss_on_host(student: Rows, teacher: Rows) -> float:
    """Compute the loss in float64: cosine, the deviation of each row, the others' ranks."""
    own, other = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (student, teacher))
    )
    n = len(own)
    apart = ~np.eye(n, dtype=bool)
    d, d_teacher = ((1 - x @ x.T)[apart].reshape(n, n - 1) for x in (own, other))
    ranks = laplace_ranks(d / d.std(axis=1, keepdims=True))
    return float(np.mean(np.abs(ranks - scipy.stats.rankdata(d_teacher, axis=1))) / (n - 1))


def features(n: int, width: int, seed: int) -> Rows:
    """Draw features in clusters, as a model's are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(10, width))
    near = centres[random.integers(0, 10, n)]
    return (near + random.normal(size=(n, width))).astype(np.float32)


def errors(name: str, n: int) -> dict[str, float]:
    """Return a candidate's largest errors: of ranks in parts of n, of loss and of gradient."""
    random, result = np.random.default_rng(0), {}
    normal = random.normal(size=(ROWS, n)).astype(np.float32)
    far = normal.copy()
    far[:, :2] = 1e6, -1e6
    rows = {"normal": normal, "ties": np.round(normal, 1), "outliers": far}
    student, teacher = features(n, 64, 1), features(n, 128, 2)
    direction = np.random.default_rng(3).normal(size=student.shape)
    step = 1e-6 * direction
    slope = (loss_on_host(student + step, teacher) - loss_on_host(student - step, teacher)) / 2e-6
    value = loss_on_host(student, teacher)
    few = normal[: ROWS if n <= 1024 else 2]
    with _sorting.using(_sorting.CANDIDATES[name]):
        for kind, x in rows.items():
            error = np.abs(jax.jit(hard_rank)(x) - scipy.stats.rankdata(x, axis=1)).max()
            result[f"hard rank, {kind}"] = float(error)
        both = jax.jit(jax.value_and_grad(pcjax.losses.perception_coherence))
        loss, gradient = both(jnp.asarray(student), jnp.asarray(teacher))
        along = float(np.vdot(np.asarray(gradient, np.float64), direction))
        result["loss"] = abs(float(loss) - value) / value
        result["gradient"] = abs(along - slope) / abs(slope)
        for method in METHODS if name == "library" else ("laplace",):
            ranks = jax.jit(functools.partial(soft_rank, method=method))(
                few, temperature=TEMPERATURE
            )
            error = np.abs(ranks - ORACLES[method](few.astype(np.float64))).max() / n
            result[f"{method} rank"] = float(error)
    return result


def losses(n: int) -> dict[str, Any]:
    """Time loss and gradient of all contenders in turns."""
    student, teacher = features(n, 128, 1), features(n, 512, 2)
    ready, result = {}, {}
    on_cpu = jax.default_backend() == "cpu"
    for name, (build, largest) in CONTENDERS.items():
        if n > (largest if on_cpu else LARGEST.get(name, 2**20)):
            continue
        start = time.monotonic()
        try:
            built = build(student, teacher)
            built.step()
        except Exception as error:
            # A peer may lack anything, or fail at a size; the others are still timed.
            result[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        result[name] = {"first": time.monotonic() - start, "bytes": built.temporary_bytes}
        ready[name] = timed(built.step)
    for name, seconds in interleaved(ready, SECONDS, failed=_note(result)).items():
        result[name]["ms"] = spread(seconds)
    return result


def choices(n: int) -> dict[str, Any]:
    """Time loss and gradient by every candidate, and the candidates alone."""
    student, teacher = features(n, 128, 1), features(n, 512, 2)
    rows = min(n, _sorting.cache_rows(n))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.random((n, rows)), jnp.float32)
    bits = _sorting.ordered_bits(x)
    ready, result = {}, {}
    for name, candidate in _sorting.CANDIDATES.items():
        calls = {
            "loss": (
                jax.value_and_grad(
                    functools.partial(pcjax.losses.perception_coherence, temperature=TEMPERATURE)
                ),
                student,
                teacher,
            ),
            "sort": (candidate.sort, bits),
            "relax": (_direction(candidate.relax, False), x, x),
            "recur": (_direction(candidate.recur, True), x, x),
        }
        if name not in ("library", "kernels"):
            del calls["relax"], calls["recur"]
        elif name == "kernels":
            del calls["sort"]
        with _sorting.using(candidate):
            for what, (function, *arguments) in calls.items():
                key = f"{what}, {name}"
                start = time.monotonic()
                try:
                    built = compiled(function, *arguments)
                    result[key] = {
                        "first": time.monotonic() - start,
                        "bytes": built.temporary_bytes,
                    }
                    ready[key] = timed(built.step)
                except Exception as error:
                    result[key] = {"error": f"{type(error).__name__}: {error}"[:300]}
    for name, seconds in interleaved(ready, SECONDS, failed=_note(result)).items():
        result[name]["ms"] = spread(seconds)
    return result


def _direction(recurrence: Callable[..., Any], reverse: bool) -> Callable[..., Any]:
    return lambda one, two: recurrence(one, two, reverse)


def _note(result: dict[str, Any]) -> Callable[[str, Exception], Any]:
    def failed(name: str, error: Exception) -> None:
        result[name] = {"error": f"{type(error).__name__}: {error}"[:300]}

    return failed


def training(model: str, folder: pathlib.Path) -> dict[str, Any]:
    """Return the images a second of pcjax's training and of a bare loop, in turns."""
    on_cpu = jax.default_backend() == "cpu"
    shape, batch = ((32, 32, 3), 256) if model == "resnet20" else ((224, 224, 3), 128)
    batch, steps = (16, 4) if on_cpu else (batch, 300 if model == "resnet20" else 60)
    return rates(model, shape, batch, steps, folder / "runs", 3)


def profile(n: int, folder: pathlib.Path) -> dict[str, Any]:
    """Return the kernels of a call with their share of its time, and rates of memory traffic."""
    x = jnp.asarray(np.random.default_rng(0).random((n, n)), jnp.float32)
    calls: dict[str, tuple[Any, int]] = {"copy": (lambda x, _: x * 2, 2)}
    for name in ("library", "kernels"):
        machine = _sorting.CANDIDATES[name]
        calls[f"relax, {name}"] = _direction(machine.relax, False), 3
        calls[f"recur, {name}"] = _direction(machine.recur, True), 3
    result: dict[str, Any] = {"n": n, "GB/s": {}}
    for name, (call, arrays) in calls.items():
        with contextlib.suppress(Exception):  # a kernel that this device cannot compile
            once = timed(compiled(call, x, x).step)
            seconds = float(np.median([once() for _ in range(10)]))
            result["GB/s"][name] = arrays * x.nbytes / seconds / 1e9
    built = compiled(
        jax.value_and_grad(pcjax.losses.perception_coherence),
        features(n, 128, 1),
        features(n, 512, 2),
    )
    built.step()
    trace = folder / "trace"
    with jax.profiler.trace(str(trace)):
        for _ in range(5):
            built.step()
    result["kernels"] = _kernels(trace)
    shutil.rmtree(trace)
    return result


def _kernels(trace: pathlib.Path) -> dict[str, float]:
    """Return the milliseconds a call of the twenty longest kernels in a trace."""
    (path,) = trace.rglob("*.xplane.pb")
    total: dict[str, float] = {}
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in on_device or [p for p in planes if "CPU" in p.name]:
        for line in plane.lines:
            if on_device and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                total[event.name] = total.get(event.name, 0) + event.duration_ns / 5e6
    return dict(sorted(total.items(), key=lambda item: -item[1])[:20])
