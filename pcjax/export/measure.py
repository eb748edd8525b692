"""An ONNX file in onnxruntime: the time of one example, and how coherent its features are."""

import dataclasses
import importlib.util
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import metrics
from pcjax.data import Dataset
from pcjax.export.functions import of_scaled
from pcjax.export.onnx import IDS, MASK
from pcjax.export.onnx_images import CHANNELS_FIRST, write_onnx_images
from pcjax.export.safetensors import Exported, Inputs, inputs_of
from pcjax.training.embedding import FrozenModel, embed

CALLS, WARM_UP_CALLS = 15, 3
ROWS_AT_A_TIME = 32
COMPARED, FEWEST = 1_000, 50  # test examples
AFFORDABLE = 2e12  # floating-point operations; half a minute on two cores
NEAREST = 10


class Runtime:
    """A file opened in onnxruntime on one thread."""

    def __init__(self, path: pathlib.Path, inputs: Inputs):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Else weights in eight bits are converted in every call, not once.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(path, options)
        self._name, self._inputs = self._session.get_inputs()[0].name, inputs

    def features(self, examples: np.ndarray) -> np.ndarray:
        """Compute the features of stored examples, or of tokens padded with -1."""
        parts = np.split(examples, range(ROWS_AT_A_TIME, len(examples), ROWS_AT_A_TIME))
        return np.concatenate([self._run(self._feed(part)) for part in parts])

    def milliseconds(self, examples: np.ndarray) -> float:
        """Return the median time of a call with one example."""
        feeds = [self._feed(example[None]) for example in examples[:CALLS]]
        return median_milliseconds(lambda i: self._run(feeds[i]), len(feeds))

    def _run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        names = [output.name for output in self._session.get_outputs()]
        feature = next(name for name in names if name.endswith("embedding"))
        return np.asarray(self._session.run([feature], feed)[0])

    def _feed(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        if self._inputs.dtype == "int32":
            return {
                IDS: np.maximum(examples, 0).astype(np.int64),
                MASK: (examples >= 0).astype(np.int64),
            }
        scaled = examples.astype(np.float32) / np.float32(self._inputs.full_scale)
        return {self._name: scaled.transpose(CHANNELS_FIRST) if scaled.ndim == 4 else scaled}


def median_milliseconds(call: Callable[[int], Any], count: int) -> float:
    """Return the median time of CALLS calls with one of `count` inputs, after a few to warm up."""
    seconds = []
    for i in range(WARM_UP_CALLS + CALLS):
        start = time.perf_counter()
        call(i % count)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARM_UP_CALLS:])


def time_of(model: FrozenModel, dataset: Dataset) -> float:
    """Return the milliseconds of one image in a JAX model, written to a temporary ONNX file.

    Args:
      model: the model.
      dataset: its images, as the model reads them.
    """
    weights = jax.tree.map(jnp.asarray, (model.parameters, model.statistics))
    module = model.function.module(*weights)
    module.eval()
    inputs = inputs_of(dataset.train, dataset.normalise)
    exported = Exported(module, inputs, {"version": "", "config": ""})
    with tempfile.TemporaryDirectory(prefix="pcjax-") as folder:
        path = pathlib.Path(folder, "model.onnx")
        write_onnx_images(path, exported, of_scaled(exported, normalise=False))
        return Runtime(path, inputs).milliseconds(test_examples(dataset, CALLS))


def test_examples(dataset: Dataset, count: int) -> np.ndarray:
    """Read an even sample of the test examples."""
    return dataset.test.take(_sample(len(dataset.test), count))


def coherences(
    runtime: Runtime, dataset: Dataset, models: Mapping[str, Any], kind: str
) -> tuple[dict[str, Any], int]:
    """Compare a file's features with those of models, on test examples.

    Args:
      runtime: the file.
      dataset: the examples as the file reads them.
      models: each model, and the examples as it reads them; one that costs too much is left out.
      kind: the dissimilarity.

    Returns:
      The coherence (Spearman) with each model, and the number of examples.
    """
    flops = {name: model.flops(seen.test) for name, (model, seen) in models.items()}
    cheapest = max(1, min(flops.values()))
    count = min(len(dataset.test), COMPARED, max(FEWEST, int(AFFORDABLE / cheapest)))
    rows = _sample(len(dataset.test), count)
    features, results = runtime.features(dataset.test.take(rows)), {}
    for name, (model, seen) in models.items():
        if flops[name] * count <= AFFORDABLE or flops[name] == cheapest:
            part = dataclasses.replace(seen.test, rows=seen.test.rows[rows])
            own = embed(model, part, seen.normalise, ROWS_AT_A_TIME).features
            k = min(NEAREST, count - 2)
            results[name] = metrics.coherence(features, own, dissimilarity=kind, k=k).spearman
    return results, count


def _sample(examples: int, count: int) -> np.ndarray:
    return np.linspace(0, examples - 1, min(examples, count)).astype(np.int64)


def described_machine() -> str:
    """Name the processor and the runtime of a measurement."""
    import onnxruntime

    name, cpuinfo = platform.processor() or platform.machine(), pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, onnxruntime {onnxruntime.__version__}"


def has_runtime() -> bool:
    """Return whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None
