"""Measure how many examples a second a model takes: on one core of a CPU, or on an accelerator."""

import contextlib
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pcjax import data
from pcjax.data import Dataset, Examples
from pcjax.data.tokens import Tokens, tokens_of
from pcjax.metrics.registry import sampled
from pcjax.training.embedding import FrozenModel, embed, jitted_outputs

CALLS, WARM_UP_CALLS, SECONDS = 9, 2, 10.0
TEXTS = 512
THREADS = pathlib.Path("/proc/self/task")


def throughput(model: FrozenModel, dataset: Dataset, batch: int) -> dict[str, Any]:
    """Measure the examples a second of a model, as the median of some calls.

    A CPU uses one of its cores. Texts are measured from the text to the features, others from a
    batch that the device has already.

    Args:
      model: the model.
      dataset: its test examples, as this model reads them.
      batch: how many examples are computed at a time.
    """
    device = jax.local_devices()[0]
    alone = device.platform == "cpu" and THREADS.is_dir()
    if isinstance(dataset.test.store, Tokens):
        count, call = _from_texts(model, dataset, batch)
    else:
        count, call = batch, _of_a_batch(model, dataset, batch)
    with one_core() if alone else contextlib.nullcontext():
        rate = count / _median_seconds(call)
    name = f"one core of {device.device_kind}" if alone else device.device_kind
    return {"examples_per_second": round(rate, 1), "batch": batch, "device": name}


def _from_texts(
    model: FrozenModel, dataset: Dataset, batch: int
) -> tuple[int, Callable[[], object]]:
    examples = dataset.test
    rows = examples.rows[sampled(len(examples), TEXTS)]
    store: Any = examples.store
    texts = [store.texts.text(row) for row in rows.tolist()]

    def call() -> object:
        tokens = tokens_of(texts, dataset.vocabulary)
        return embed(model, Examples(tokens, np.arange(len(texts))), dataset.normalise, batch)

    return len(texts), call


def _of_a_batch(model: FrozenModel, dataset: Dataset, batch: int) -> Callable[[], object]:
    batches = data.evaluation_batches(dataset.test, batch=batch, normalise=dataset.normalise)
    arrays = (model.parameters, model.statistics, next(iter(batches))["image"])
    arrays = jax.device_put(arrays, jax.local_devices()[0])
    return lambda: jax.block_until_ready(jitted_outputs(model.function, *arrays))


def _median_seconds(call: Callable[[], object]) -> float:
    for _ in range(WARM_UP_CALLS):
        call()
    seconds: list[float] = []
    while len(seconds) < CALLS and (len(seconds) < 3 or sum(seconds) < SECONDS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep all threads of this process on one core (Linux)."""
    allowed = os.sched_getaffinity(0)

    def pin(cores: set[int]) -> None:
        for thread in THREADS.iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cores)

    pin({min(allowed)})
    try:
        yield
    finally:
        pin(allowed)
