"""Measure an export: the time of one example, and how coherent weights in eight bits are."""

import dataclasses
import importlib.util
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.data import Dataset, Examples
from pcjax.data.normalise import Normaliser
from pcjax.export.functions import of_scaled
from pcjax.export.onnx import IDS, MASK
from pcjax.export.onnx_images import CHANNELS_FIRST, write_onnx_images
from pcjax.export.safetensors import Exported, Inputs, inputs_of
from pcjax.teachers.encoder import Encoder
from pcjax.teachers.functions import FunctionEncoder
from pcjax.training.embedding import FrozenModel, embed

CALLS, WARM_UP_CALLS = 15, 3
ROWS_AT_A_TIME = 32
COMPARED, FEWEST = 1_000, 50  # test examples
AFFORDABLE = 2e12  # floating-point operations; half a minute on two cores
UNKNOWN_FLOPS = 10**10  # of an example, in a function that JAX cannot see into
NEAREST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model that is measured, and the examples as it reads them.

    dataset: the examples.
    features: computes the features of such examples.
    milliseconds: measures one image, as an ONNX file; None where there is no such file.
    flops: counts the operations of one example.
    """

    dataset: Dataset
    features: Callable[[Examples], np.ndarray]
    milliseconds: Callable[[], float | None]
    flops: Callable[[], int]

    @classmethod
    def of_model(cls, model: FrozenModel, dataset: Dataset) -> "Subject":
        """Measure a JAX model."""
        return cls(
            dataset,
            lambda examples: embed(model, examples, dataset.normalise, ROWS_AT_A_TIME).features,
            lambda: _time_of_model(model, dataset),
            lambda: model.flops(dataset.test),
        )

    @classmethod
    def of_encoder(cls, encoder: Encoder, dataset: Dataset) -> "Subject":
        """Measure a model of others on its own view of the data set that the student reads."""
        seen, model = encoder.view(dataset), encoder.model
        return cls(
            seen,
            lambda examples: encoder.features(examples, seen.normalise, ROWS_AT_A_TIME),
            lambda: _time_of_model(model, seen) if model else _time_of_function(encoder, seen),
            lambda: model.flops(seen.test) if model else UNKNOWN_FLOPS,
        )

    def sample(self, count: int) -> np.ndarray:
        """Read an even sample of the test examples."""
        return self.dataset.test.take(_sample(len(self.dataset.test), count))

    def features_of(self, rows: np.ndarray) -> np.ndarray:
        """Compute the features of test examples."""
        test = self.dataset.test
        return self.features(dataclasses.replace(test, rows=test.rows[rows]))


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


def _time_of_model(model: FrozenModel, dataset: Dataset) -> float | None:
    weights = jax.tree.map(jnp.asarray, (model.parameters, model.statistics))
    inputs = inputs_of(dataset.train, dataset.normalise)
    rows = _sample(len(dataset.test), CALLS)
    return time_of_module(model.function.module(*weights), inputs, dataset.test.take(rows))


def time_of_module(module: nnx.Module, inputs: Inputs, images: np.ndarray) -> float | None:
    """Return the milliseconds of one image in a module, written to a temporary ONNX file.

    It is None where ONNX cannot hold the module.
    """
    module.eval()
    exported = Exported(module, inputs, {"version": "", "config": ""})
    with tempfile.TemporaryDirectory(prefix="pcjax-") as folder:
        path = pathlib.Path(folder, "model.onnx")
        try:
            write_onnx_images(path, exported, of_scaled(exported, normalise=False))
        except RequestError:
            return None
        return Runtime(path, inputs).milliseconds(images)


def _time_of_function(encoder: Encoder, seen: Dataset) -> float | None:
    if not isinstance(encoder, FunctionEncoder) or encoder.on_one_thread is None:
        return None
    rows = _sample(len(seen.test), CALLS)
    images = Normaliser(seen.test, seen.normalise)(seen.test.take(rows))
    function = encoder.on_one_thread()
    return median_milliseconds(lambda i: function(images[i : i + 1]), len(images))


def coherence_of_int8(runtime: Runtime, own: Subject, teacher: Subject | None, kind: str) -> str:
    """Describe how the features of weights in eight bits order the test examples.

    Args:
      runtime: the file.
      own: the float student that it was made of.
      teacher: None where it cannot be computed.
      kind: the dissimilarity.
    """
    costliest = max(1, own.flops(), teacher.flops() if teacher else 0)
    count = min(len(own.dataset.test), COMPARED, max(FEWEST, int(AFFORDABLE / costliest)))
    rows = _sample(len(own.dataset.test), count)

    def coherence(features: np.ndarray, others: np.ndarray) -> str:
        k = min(NEAREST, count - 2)
        result = metrics.coherence(features, others, dissimilarity=kind, k=k)
        return f"{result.spearman.value:.4f}"

    int8, float32 = runtime.features(own.dataset.test.take(rows)), own.features_of(rows)
    parts = [f"int8 with the float student {coherence(int8, float32)}"]
    if teacher is not None:
        outputs = teacher.features_of(rows)
        parts.append(
            f"with the teacher int8 {coherence(int8, outputs)}, float {coherence(float32, outputs)}"
        )
    return f"Coherence (Spearman) on {count:,} test examples: {'; '.join(parts)}."


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
