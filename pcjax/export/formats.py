"""The formats in which `pcjax export` writes a student."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.export import folders, onnx, safetensors
from pcjax.export.card import CardFacts, model_card
from pcjax.models import options_of
from pcjax.models.text import TextModel


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """A trained student with everything that the formats need.

    architecture: how to build it.
    inputs: what it takes.
    arrays: its weights, float32, by path.
    about: "version", "features" and "config"; see `pcjax.export.safetensors.Exported`.
    tokenizer: the JSON of its tokenizer, where it reads texts.
    card: the facts of its model card, where it reads texts.
    """

    architecture: safetensors.Architecture
    inputs: safetensors.Inputs
    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]
    tokenizer: str | None = None
    card: CardFacts | None = None

    def text_model(self, format_name: str) -> TextModel:
        """Return the student as a model of texts; refuse another one."""
        if self.tokenizer is None:
            raise RequestError(
                f"--format {format_name} is for students that read texts; give --format "
                "safetensors."
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

    def card_of(self, *formats: str) -> str:
        """Return the model card of a folder that others load in these ways."""
        facts = self.card
        if facts is None:
            raise RequestError("there are no facts for a model card")
        return model_card(dataclasses.replace(facts, formats=formats))


class Format(NamedTuple):
    """A format of exports.

    write: (folder of the run, student) -> the path that it has written.
    title: its description.
    use: how to use it, with {path}.
    """

    write: Callable[[pathlib.Path, Student], pathlib.Path]
    title: str
    use: str


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


def _onnx(folder: pathlib.Path, student: Student) -> pathlib.Path:
    path, model = folder / "onnx" / "model.onnx", student.text_model("onnx")
    path.parent.mkdir(exist_ok=True)
    onnx.write_onnx(path, model)
    return path


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
        "model.onnx with pooling inside, and its tokenizer.json; needs the extra onnx",
        "onnxruntime.InferenceSession({path!r}), with tokenizer.json beside it",
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
