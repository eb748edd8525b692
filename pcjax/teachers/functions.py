"""Teachers that JAX cannot see into: a batch of images in, features out."""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.data import Dataset, Examples
from pcjax.data.normalise import Normaliser
from pcjax.teachers.image_folders import PREPROCESSOR, read_preprocessor
from pcjax.teachers.images import CHANNELS, IMAGENET, ImageReader, checked_side, stamped

Function = Callable[[np.ndarray], Any]
SIDE = 224  # of the images that a function is tried with, where there are no others
BLOCK = 2**20  # bytes


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FunctionEncoder(ImageReader):
    """A model of images that is a function of a batch (n, height, width, channels).

    function: returns (n, width) features.
    identity: a hash of everything that the function computes with.
    on_one_thread: returns the function limited to one thread, for timing; None if it cannot be.
    """

    function: Function
    identity: str
    on_one_thread: Callable[[], Function] | None = None

    @property
    def digest(self) -> str:
        """Hash the function."""
        return self.identity

    def features(
        self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray], batch: int
    ) -> np.ndarray:
        """Compute the features of examples of a data set that `view` returned."""
        normaliser = None if self.mean is None else Normaliser(examples, normalise)
        rows = np.zeros((len(examples), self.width), np.float32)
        for start in range(0, len(examples), batch):
            images = examples.take(np.arange(start, min(start + batch, len(examples))))
            images = images if normaliser is None else normaliser(images)
            output = checked_features(self.name, self.function(images), len(images))
            if output.shape[1] != self.width:
                raise RequestError(
                    f"{self.name} (teacher.source) returned {output.shape[1]} features an image "
                    f"after {self.width}; return the same number for every batch."
                )
            rows[start : start + len(images)] = output
        return rows


def checked_features(name: str, output: Any, count: int) -> np.ndarray:
    """Return the features of a function as an array; refuse outputs that are no features."""
    try:
        rows = np.asarray(output)
    except Exception as error:  # whatever the object's conversion raises
        raise RequestError(
            f"{name} (teacher.source) returned {type(output).__name__}; return an array."
        ) from error
    if rows.ndim != 2 or len(rows) != count or not rows.shape[1] or rows.dtype.kind != "f":
        raise RequestError(
            f"{name} (teacher.source) returned shape {rows.shape} of {rows.dtype} for {count} "
            "images; return floating-point features (images, features)."
        )
    if not np.isfinite(rows).all():
        raise RequestError(f"{name} (teacher.source) returned NaN or infinite features.")
    return rows.astype(np.float32)


def read_function(
    name: str, dataset: Dataset | None = None, *, side: int | None = None
) -> FunctionEncoder:
    """Import a function. Only a config's .py file may name one: importing it runs its module.

    Its identity is the text of its module and its features of one image. The features change if the
    function reads other weights from a file.

    Args:
      name: "module.function": images as they are stored, uint8 or floats, to (n, d) features.
      dataset: gives the shape and the dtype of the images.
      side: height and width of the images; None keeps the stored size.
    """
    module_name, _, function_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except Exception as error:  # the module runs, and may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RequestError(
            f"python:{name} (teacher.source) cannot be imported ({reason}); give module.function."
        ) from error
    if not callable(function):
        raise RequestError(f"python:{name} (teacher.source) is no function.")
    shape, dtype = (SIDE, SIDE, CHANNELS), np.dtype(np.uint8)
    if dataset is not None:
        shape, dtype = dataset.train.shape, dataset.train.dtype
    if side is not None:
        side = checked_side("the side of a teacher's images", side)
        shape = (side, side, CHANNELS)
    output = _tried(f"python:{name}", function, _ramp(shape, dtype))
    source = pathlib.Path(getattr(module, "__file__", None) or "")
    text = source.read_bytes() if source.is_file() else b""
    identity = [name, hashlib.blake2b(text).hexdigest(), _rounded(output)]
    return FunctionEncoder(
        name=name,
        width=output.shape[1],
        model=None,
        side=side,
        mean=None,
        std=None,
        function=function,
        identity=_io.digest(identity),
    )


def _ramp(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return one image (1, *shape) whose values rise over the whole range."""
    most = 255 if dtype == np.uint8 else 1
    return np.linspace(0, most, int(np.prod(shape))).astype(dtype).reshape(1, *shape)


def _rounded(features: np.ndarray) -> str:
    """Return features as text, in four digits: other machines differ in the last ones."""
    return " ".join(f"{value:.3e}" for value in np.ravel(features).tolist())


def _tried(name: str, function: Function, images: np.ndarray) -> np.ndarray:
    """Return the features of images; refuse a function that raises."""
    try:
        output = function(images)
    except Exception as error:  # code of others may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RequestError(
            f"{name} (teacher.source) failed for images of shape {images.shape}: {reason}"
        ) from error
    return checked_features(name, output, len(images))


def read_onnx(
    name: str, dataset: Dataset | None = None, *, side: int | None = None
) -> FunctionEncoder:
    """Read an ONNX file, "FILE" or "FILE#OUTPUT", with onnxruntime.

    Images are normalised by the mean and standard deviation in the preprocessor_config.json beside
    the file; without that file, by ImageNet's.

    Args:
      name: the file, and the name of its output where it has several.
      dataset: not used.
      side: height and width of the images, where the file does not fix them.
    """
    file, _, output = name.partition("#")
    path = pathlib.Path(file).expanduser()
    stamped(path)
    # Its weights may be in a file of their own, such as model.onnx.data.
    beside = [x for x in path.parent.iterdir() if x.name.startswith(path.name) and x.is_file()]
    files = tuple((x, x.stat().st_mtime_ns) for x in sorted(beside))
    return _read_onnx_once(path, files, output, side)


@functools.lru_cache(maxsize=2)
def _read_onnx_once(
    path: pathlib.Path, files: tuple[tuple[pathlib.Path, int], ...], output: str, side: int | None
) -> FunctionEncoder:
    if importlib.util.find_spec("onnxruntime") is None:
        raise RequestError(f'teacher.source=onnx:{path} needs `pip install "pcjax[onnx]"`.')
    session = _session(path)
    settings = path.with_name(PREPROCESSOR)
    own_side, mean, std = read_preprocessor(settings) if settings.is_file() else (None, *IMAGENET)
    images = _Images.of(path, session.get_inputs())
    side = images.side_of(path, side, own_side)
    chosen = _output(path, session.get_outputs(), output)

    def run(session: Any, batch: np.ndarray) -> np.ndarray:
        parts = []
        step = images.batch or len(batch)
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            padded = np.pad(part, ((0, step - len(part)), (0, 0), (0, 0), (0, 0)))
            inputs = padded.transpose(0, 3, 1, 2) if images.channels_first else padded
            feed = {images.name: np.ascontiguousarray(inputs)}
            parts.append(np.asarray(session.run([chosen], feed)[0])[: len(part)])
        return np.concatenate(parts)

    function = functools.partial(run, session)
    features = _tried(str(path), function, _ramp((side, side, CHANNELS), np.dtype(np.float32)))
    return FunctionEncoder(
        name=path.name,
        width=features.shape[1],
        model=None,
        side=side,
        mean=mean,
        std=std,
        function=function,
        on_one_thread=lambda: functools.partial(run, _session(path, threads=1)),
        # Weights may lie in further files of any name.
        identity=_io.digest([chosen, _rounded(features), *(_file_digest(f) for f, _ in files)]),
    )


def _session(path: pathlib.Path, threads: int = 0) -> Any:
    """Open a file in onnxruntime, which chooses the number of threads for 0."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class
        reason = " ".join(str(error).split())[:300]
        raise RequestError(f"{path} cannot be read: {reason}.") from error


@dataclasses.dataclass(frozen=True)
class _Images:
    """The input of an ONNX file; None where a size varies."""

    name: str
    batch: int | None
    side: int | None
    channels_first: bool

    @classmethod
    def of(cls, path: pathlib.Path, inputs: Sequence[Any]) -> "_Images":
        """Find the layout; refuse inputs that are no batch of colour images."""
        sizes = [*inputs[0].shape] if len(inputs) == 1 else []
        first = len(sizes) == 4 and sizes[1] == CHANNELS
        last = len(sizes) == 4 and sizes[3] == CHANNELS
        side, columns = (sizes[2:4] if first else sizes[1:3]) if first or last else (None, None)
        fixed = isinstance(side, int) or isinstance(columns, int)
        known = (first or last) and (side == columns or not fixed)
        if not known or inputs[0].type != "tensor(float)":
            listed = ", ".join(f"{x.name} {x.type} {x.shape}" for x in inputs)[:200]
            raise RequestError(
                f"{path} has the inputs {listed}; give a model of one batch of float32 images, "
                "(batch, 3, side, side) or (batch, side, side, 3)."
            )
        batch = sizes[0] if isinstance(sizes[0], int) else None
        return cls(inputs[0].name, batch, side if fixed else None, first)

    def side_of(self, path: pathlib.Path, given: int | None, stored: int | None) -> int:
        """Return the side of the images: the file's, the given one, or that stored beside it."""
        if self.side is not None and given not in (None, self.side):
            raise RequestError(
                f"{path} reads images of {self.side} x {self.side}, and the side {given} was "
                "given; leave it out."
            )
        side = self.side or given or stored
        if side is None:
            raise RequestError(
                f"{path} reads images of any size; give the side of the teacher's images, or put "
                f"a {PREPROCESSOR} beside it."
            )
        return checked_side(f"{path}: side", side)


def _output(path: pathlib.Path, outputs: Sequence[Any], name: str) -> str:
    """Return the output that is named, or the only one of shape (batch, features)."""
    floats = [x.name for x in outputs if x.type == "tensor(float)" and len(x.shape) == 2]
    names = [x.name for x in outputs]
    if name in names or (not name and len(floats) == 1):
        return name or floats[0]
    listed = ", ".join(f"{x.name} {x.shape}" for x in outputs)[:200]
    cause = f"has no output {name}" if name else f"has {len(floats)} outputs of features"
    raise RequestError(
        f"{path} {cause} among {listed}; name one of shape (batch, features): onnx:FILE#OUTPUT."
    )


def _file_digest(path: pathlib.Path) -> str:
    result = hashlib.blake2b()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            result.update(block)
    return result.hexdigest()
