"""What a frozen model is worth beyond its own test examples: on other data, on corrupted images, and by the clock."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pcjax import data as sources
from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.config import Config, Evaluation
from pcjax.data import CORRUPTIONS, SEVERITIES, Dataset, Examples
from pcjax.evaluation.measures import COMPARED, by_labels, labels_of
from pcjax.training.embedding import Frozen, outputs, represent, represent_all

CALLS, CALLS_BEFORE = 9, 2  # timed ones, and those that warm up


def load_other(config: Config, examples: Dataset) -> Dataset | None:
    """The data set that evaluation.other names, in the shape of the model's own examples."""
    asked, shape = config.evaluation, examples.train.shape
    if asked.other is None:
        return None
    stored = asked.other.startswith("tfds:")
    # Images that are decoded are best resized by their decoder; the others when they are read.
    size = shape[0] if stored and len(shape) == 3 and shape[0] == shape[1] else None
    folder = asked.other_dir or (config.data.data_dir if stored else None)
    try:
        found = sources.load(
            asked.other, data_dir=folder, validation=config.data.validation, image_size=size
        )
        return sources.fitted(found, shape)
    except RequestError as error:
        raise RequestError(f"evaluation.other: {error}") from error


def judge_beyond(
    model: Frozen,
    features: Mapping[str, np.ndarray],
    data: Dataset,
    normalise: tuple[np.ndarray, np.ndarray],
    asked: Evaluation,
    other: Dataset | None,
) -> dict[str, Any]:
    """What was asked for of other data and of corrupted images; nothing by default."""
    found: dict[str, Any] = {}
    if other is not None:
        said = represent_all(model, other, normalise, asked.batch)
        theirs = {part: one.features for part, one in said.items()}
        found["other"] = {other.source: by_labels(theirs, other, asked)}
    if asked.corruptions:
        found["corruptions"] = robustness(model, features, data, normalise, asked)
    return found


def robustness(
    model: Frozen,
    features: Mapping[str, np.ndarray],
    data: Dataset,
    normalise: tuple[np.ndarray, np.ndarray],
    asked: Evaluation,
) -> dict[str, Any]:
    """k-NN accuracy of corrupted test examples among the clean training examples, by corruption and severity."""
    names = (
        tuple(CORRUPTIONS)
        if "all" in asked.corruptions
        else tuple(dict.fromkeys(asked.corruptions))
    )
    labels = labels_of(data)
    if labels is None:
        raise RequestError(
            f"got evaluation.corruptions for {data.source}: expected the class of every example"
        )
    some = np.arange(0, len(data.test), -(-len(data.test) // COMPARED))
    looked_at = Examples(data.test.store, data.test.rows[some], data.test.classes)
    k = min(asked.neighbours, len(features["train"]))

    def accuracy(queries: np.ndarray) -> float:
        predicted = metrics.knn_predict(queries, features["train"], labels["train"], k=k)
        return float(np.mean(np.asarray(predicted) == labels["test"][some]))

    found: dict[str, Any] = {"clean": accuracy(features["test"][some])}
    for name in names:
        severities = {}
        for severity in SEVERITIES:
            corrupted = sources.corrupted_examples(looked_at, name, severity, data.train)
            severities[str(severity)] = accuracy(
                represent(model, corrupted, normalise, asked.batch).features
            )
        found[name] = severities | {"mean": statistics.fmean(severities.values())}
    return found | {"mean": statistics.fmean(found[name]["mean"] for name in names)}


def throughput(
    model: Frozen, examples: Examples, normalise: tuple[np.ndarray, np.ndarray], batch: int
) -> dict:
    """Examples a second of the compiled model on one device: the median of some calls, what it is given lying there."""
    device = jax.local_devices()[0]
    batches = sources.evaluation_batches(examples, batch=batch, normalise=normalise)
    parameters, kept, images = jax.device_put(
        (model.parameters, model.statistics, next(iter(batches))["image"]), device
    )
    seconds = []
    for _ in range(CALLS_BEFORE + CALLS):
        began = time.perf_counter()
        jax.block_until_ready(outputs(model.function, parameters, kept, images))
        seconds.append(time.perf_counter() - began)
    rate = batch / statistics.median(seconds[CALLS_BEFORE:])
    return {"examples_per_second": round(rate, 1), "batch": batch, "device": device.device_kind}
