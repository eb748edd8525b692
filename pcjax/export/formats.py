"""The formats in which `pcjax export` writes a student."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy as safetensors_numpy

from pcjax import _checks, _io
from pcjax._checks import RequestError
from pcjax.export import folders, functions, onnx, onnx_images, safetensors, stablehlo, torchvision
from pcjax.export.card import CardFacts, model_card
from pcjax.models import options_of
from pcjax.models.text import TextModel

TORCHVISION = "student.torchvision.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """A trained student with everything that the formats need.

    architecture: how to build it.
    inputs: what it takes.
    arrays: its weights, float32, by path.
    about: "version", "features" and "config"; see `pcjax.export.safetensors.Exported`.
    card: the facts of its model card.
    tokenizer: the JSON of its tokenizer, where it reads texts.
    normalise: whether the exported features are scaled to length 1.
    """

    architecture: safetensors.Architecture
    inputs: safetensors.Inputs
    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    card: CardFacts
    tokenizer: str | None = None
    normalise: bool = False

    def text_model(self, format_name: str) -> TextModel:
        """Return the student as a model of texts; refuse another one."""
        if self.tokenizer is None:
            raise RequestError(
                f"--format {format_name} is for students that read texts; give --format "
                "safetensors, onnx or stablehlo."
            )
        # Others rebuild the model without pcjax's defaults.
        defaults = {n: p.default for n, p in options_of(self.architecture.name).items()}
        return TextModel(
            self.architecture.name,
            {**defaults, **self.architecture.options},
            {n: x for n, x in self.arrays.items() if not n.startswith("classify/")},
            self.tokenizer,
            self.inputs.limit,
        )

    def module(self, dtype: str | None = None) -> safetensors.Exported:
        """Return the student as a module that computes in `dtype`; None: as it was trained."""
        model = dataclasses.replace(self.architecture, dtype=dtype or self.architecture.dtype)
        arrays = {name.replace("/", "."): array for name, array in self.arrays.items()}
        module = safetensors.built(model, self.inputs, arrays)
        return safetensors.Exported(module, self.inputs, dict(self.about))

    def card_of(self, *formats: str, measured: tuple[str, ...] = ()) -> str:
        """Return the model card of a student that is loaded in these ways."""
        code = _torchvision_code(self) if "torchvision" in formats else None
        facts = dataclasses.replace(self.card, formats=formats, measured=measured, code=code)
        return model_card(facts)


class Format(NamedTuple):
    """A format of exports.

    write: (folder of the run, student) -> the path that it has written: a folder with a model card
      in it, or a file, beside which the command writes the card.
    title: its description.
    use: how to use it, with {path}.
    normalises: whether --normalise is for this format, for students that read no texts.
    onnx: the weights of an ONNX file, "float32" or "int8".
    notes: more lines to print, of a student.
    """

    write: Callable[[pathlib.Path, Student], pathlib.Path]
    title: str
    use: str
    normalises: bool = False
    onnx: str | None = None
    notes: Callable[[Student], tuple[str, ...]] = lambda _: ()


def _safetensors(folder: pathlib.Path, student: Student) -> pathlib.Path:
    path = folder / safetensors.EXPORTED
    safetensors.export(
        path,
        student.architecture,
        student.inputs,
        student.arrays,
        student.about,
        student.tokenizer,
    )
    return path


def _sentence_transformers(folder: pathlib.Path, student: Student) -> pathlib.Path:
    path, model = folder / "sentence-transformers", student.text_model("sentence-transformers")
    also = ("model2vec",) if model.name == "static" else ()
    card = student.card_of("sentence-transformers", *also)
    folders.write_sentence_transformers(path, model, card)
    return path


def _model2vec(folder: pathlib.Path, student: Student) -> pathlib.Path:
    path, model = folder / "model2vec", student.text_model("model2vec")
    card = student.card_of("model2vec", "sentence-transformers")
    folders.write_model2vec(path, model, card)
    return path


def _onnx(folder: pathlib.Path, student: Student, *, int8: bool = False) -> pathlib.Path:
    path = folder / ("onnx-int8" if int8 else "onnx") / "model.onnx"
    if student.tokenizer is not None:
        onnx.write_onnx(path, student.text_model("onnx"), int8=int8)
    else:
        model = student.module("float32")
        function = functions.of_scaled(model, normalise=student.normalise)
        onnx_images.write_onnx_images(path, model, function, int8=int8)
        if len(student.inputs.shape) == 3 and student.inputs.shape[2] == 3:
            _io.write_json(path.with_name("preprocessor_config.json"), _preprocessor(student))
    return path


def _preprocessor(student: Student) -> dict[str, Any]:
    """Say as Hugging Face does how others, and pcjax's `onnx:FILE`, prepare images."""
    height, width, _ = student.inputs.shape
    return {
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,  # the file does it
    }


def _onnx_notes(student: Student) -> tuple[str, ...]:
    if student.tokenizer is not None:
        return ()
    length = ", of length 1" if student.normalise else ""
    features = student.about["features"]
    return (
        f"input {onnx_images.described_input(student.inputs)}",
        f"output embedding: float32 (batch, {features}){length}",
    )


def _stablehlo(folder: pathlib.Path, student: Student) -> pathlib.Path:
    path, inputs = folder / stablehlo.EXPORTED, student.inputs
    function = functions.of_stored(student.module(), normalise=student.normalise)
    about = {"pcjax": student.about["version"], "config": student.about["config"]}
    shape = inputs.shape
    if student.tokenizer is not None:
        about["tokens"] = "ids of the tokens of every text, padded with -1"
        most = student.text_model("stablehlo").options.get("positions", safetensors.MAX_SIZE)
        shape = (most,)
    stablehlo.write_stablehlo(path, function, inputs.dtype, shape, about)
    return path


def _torchvision(folder: pathlib.Path, student: Student) -> pathlib.Path:
    path, architecture = folder / TORCHVISION, student.architecture
    tensors = torchvision.torchvision_tensors(
        architecture.name, architecture.options, student.arrays
    )
    # safetensors writes the memory of an array, whatever its strides.
    stored = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    content = safetensors_numpy.save(stored, folders.FOR_PYTORCH | _torchvision_facts(student))
    with _io.atomic_path(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def _torchvision_facts(student: Student) -> dict[str, str]:
    """Return how to build the model in torchvision, and how its images are normalised."""
    architecture, inputs = student.architecture, student.inputs
    scale = inputs.full_scale
    mean = [round(x / scale, 6) for x in inputs.subtract]
    std = [round(1 / (x * scale), 6) for x in inputs.multiply]
    model = torchvision.torchvision_model(architecture.name, architecture.options, student.arrays)
    return {
        "model": model,
        "preprocessing": f"(pixels / {scale:g} - mean) / std, mean={mean}, std={std}",
    }


def _torchvision_code(student: Student) -> str:
    facts = _torchvision_facts(student)
    return f"""\
import safetensors.torch
import torchvision

model = {facts["model"]}
model.load_state_dict(safetensors.torch.load_file({TORCHVISION!r}))
model.eval()  # of float32 (images, 3, height, width):
# {facts["preprocessing"]}"""


def _torchvision_notes(student: Student) -> tuple[str, ...]:
    return tuple(f"{name}: {fact}" for name, fact in _torchvision_facts(student).items())


ONNX_USE = "onnxruntime.InferenceSession({path!r}); README.md beside it shows how"
# A package adds its own by an entry point of the group "pcjax.formats" that names a `Format`.
FORMATS = {
    "safetensors": Format(
        _safetensors, "one file, for pcjax.load", "pcjax.load({path!r}) in your own code"
    ),
    "sentence-transformers": Format(
        _sentence_transformers,
        "a folder for SentenceTransformer(...); of a static student, for model2vec too",
        "SentenceTransformer({path!r}) in sentence-transformers",
    ),
    "model2vec": Format(
        _model2vec,
        "a folder for StaticModel.from_pretrained(...), of a static student",
        "StaticModel.from_pretrained({path!r}) in model2vec",
    ),
    "onnx": Format(
        _onnx,
        "a folder with model.onnx, pooling and normalisation inside; needs the extra onnx",
        ONNX_USE,
        normalises=True,
        onnx="float32",
        notes=_onnx_notes,
    ),
    "onnx-int8": Format(
        functools.partial(_onnx, int8=True),
        "the same with weights in eight bits: a quarter of the size, slightly other features",
        ONNX_USE,
        normalises=True,
        onnx="int8",
        notes=_onnx_notes,
    ),
    "stablehlo": Format(
        _stablehlo,
        "a file for jax.export, for serving soon with a similar version of JAX; no archive",
        "jax.export.deserialize(open({path!r}, 'rb').read()).call(examples), without pcjax",
        normalises=True,
    ),
    "torchvision": Format(
        _torchvision,
        "torchvision's names, of ResNets, MobileNetV2 and ShuffleNetV2 for ImageNet",
        "model.load_state_dict(safetensors.torch.load_file({path!r})) in PyTorch",
        notes=_torchvision_notes,
    ),
}


def all_formats() -> dict[str, Format]:
    """Return the formats of this package and of installed ones, by name."""
    installed = metadata.entry_points(group="pcjax.formats")
    return FORMATS | {entry.name: entry.load() for entry in installed}


def find_format(name: str) -> Format:
    """Return a format by its name."""
    formats = all_formats()
    _checks.require_name("format", name, formats)
    return formats[name]
