"""A student's initial weights from a pretrained model of the same architecture."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from pcjax._checks import RequestError
from pcjax.config import Model
from pcjax.teachers.images import ImageEncoder
from pcjax.teachers.sources import find_teacher, read_source
from pcjax.training.embedding import FrozenModel

OWN_LAYERS = ("embed", "classify")  # a student's last layers, which other models lack


def check_pretrained(student: FrozenModel, source: str, model: Model, shape: Any) -> None:
    """Refuse a pretrained model that the student cannot begin with; nothing is computed."""
    _arrays(student, source, model, shape)


def pretrained(student: FrozenModel, source: str, model: Model, shape: Any) -> FrozenModel:
    """Return a student with the weights of a pretrained model; its last layers stay its own.

    Args:
      student: the student, built.
      source: the pretrained model, written as teacher.source.
      model: the student's architecture.
      shape: of one example.
    """
    arrays = _arrays(student, source, model, shape)
    parameters, statistics = (
        {name: jnp.asarray(arrays.get(name, array)) for name, array in own.items()}
        for own in (student.parameters, student.statistics)
    )
    return student._replace(parameters=parameters, statistics=statistics)


def _arrays(student: FrozenModel, source: str, model: Model, shape: Any) -> Mapping[str, Any]:
    kind, _ = find_teacher(source)
    if kind.reads != "images" or not kind.is_model or len(shape) != 3 or shape[0] != shape[1]:
        raise RequestError(
            f"initial={source!r}: only students of square images begin with a pretrained model of "
            "torchvision, timm or dinov2; remove it."
        )
    # A table of positions is brought to the student's images.
    encoder = read_source(source, None, shape[0])
    if not isinstance(encoder, ImageEncoder):
        raise RequestError(f"initial={source!r} has no weights to begin with; give a model's file.")
    if encoder.architecture != model.name:
        raise RequestError(
            f"initial={source!r} is a {encoder.architecture}, and the student is a {model.name}; "
            f"give --student.name {encoder.architecture}."
        )
    given = {**encoder.model.parameters, **encoder.model.statistics}
    own = {**student.parameters, **student.statistics}
    for name, array in own.items():
        if name.split("/")[0] in OWN_LAYERS:
            continue
        if name not in given or given[name].shape != array.shape:
            held = f"shape {given[name].shape}" if name in given else "no such array"
            raise RequestError(
                f"initial={source!r}: the student's {name} has shape {array.shape}, and the file "
                f"has {held}; give the student the options {dict(encoder.options)} and colour "
                "images."
            )
    return {name: given[name] for name in own if name.split("/")[0] not in OWN_LAYERS}
