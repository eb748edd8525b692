"""Draw the nearest neighbours by teacher and student, as rows of pictures or texts."""

import base64
import io
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcjax._checks import printable
from pcjax.data import Examples
from pcjax.data.tokens import Tokens
from pcjax.report.page import Markup, tag

LARGEST = 64  # pixels of a picture's longer side
LONGEST = 100  # letters of a text


class Seen(NamedTuple):
    """Sampled examples with their labels and class names."""

    examples: Examples  # all
    labels: np.ndarray | None  # of the sampled examples
    classes: list[str]

    def name_of(self, label: int) -> str:
        """Return the name of a class."""
        if label < 0:
            return "unknown"
        return self.classes[label] if label < len(self.classes) else f"{label}"


def rows_of(
    test: Seen,
    places: np.ndarray,
    chosen: np.ndarray,
    coherence: Mapping[str, np.ndarray],
    near: Mapping[str, np.ndarray],
) -> list[Markup]:
    """Show examples with their nearest neighbours by every model.

    Args:
      test: the sampled examples.
      places: (n,) their positions among all test examples.
      chosen: positions of the shown examples among the sampled ones, lowest coherence first.
      coherence: student -> (n,) coherence with the teacher, seen from each example.
      near: model -> (n, k) nearest neighbours of each example; the teacher comes first.
    """
    (teacher, own), *students = ((model, nearest[chosen]) for model, nearest in near.items())
    k = own.shape[1]
    used = np.unique(np.concatenate([chosen, own.ravel(), *(x.ravel() for _, x in students)]))
    pictures = dict(zip(used.tolist(), _pictures(test.examples, places[used]), strict=False))
    texts = dict(zip(used.tolist(), _texts(test.examples, places[used]), strict=False))

    def example(place: int, shared: bool = False) -> Markup:
        label = "" if test.labels is None else f", class {test.name_of(int(test.labels[place]))}"
        title = f"test example {places[place]}{label}{', shared' if shared else ''}"
        if texts:
            return tag("span", texts[place], title=title)
        if not pictures:
            return tag("span", f"{places[place]}{label.replace(', class', ':')}", title=title)
        return tag("img", src=pictures[place], alt=title, title=title)

    def strip(model: str, nearest: np.ndarray, shared: set[int]) -> list[Markup]:
        cells = [
            tag("li", example(other, other in shared), class_="shared" if other in shared else None)
            for other in nearest.tolist()
        ]
        several = len(students) > 1 and model != teacher
        text = f"by {model}: {len(shared)} of {k} shared" if several else f"nearest by {model}"
        return [tag("div", text, class_="by"), tag("ol", *cells, class_="texts" if texts else None)]

    items = []
    for row, place in enumerate(chosen):
        shared = {model: set(own[row].tolist()) & set(x[row].tolist()) for model, x in students}
        shared_by_all = set.intersection(*shared.values())
        strips = strip(teacher, own[row], shared_by_all)
        for model, nearest in students:
            strips += strip(model, nearest[row], shared[model])
        label = "" if test.labels is None else f"class {test.name_of(int(test.labels[place]))}, "
        values = sorted(float(x[place]) for x in coherence.values())
        text = f"{label}coherence {values[0]:.3f}{f' to {values[-1]:.3f}' if values[1:] else ''}"
        text += f", {len(shared_by_all)} of {k} shared{' by all' if len(students) > 1 else ''}"
        item = tag("p", text), tag("div", example(int(place))), tag("div", *strips)
        items.append(tag("li", *item))
    several = len(students) > 1
    by = "every student" if several else "the student"
    frame = (
        "A frame marks a neighbour that a student shares with the teacher; in the teacher's row, "
        "one that all students share."
        if several
        else "A frame marks a neighbour that both share."
    )
    text = (
        f"Beside each test example stand its {k} nearest by the teacher and by {by}, out of "
        f"{len(places):,} examples. {frame} Examples of low {'mean ' if several else ''}coherence "
        "come first, then typical ones, then those of high coherence."
    )
    return [tag("p", text), tag("ul", *items, class_="rows")]


def _texts(examples: Examples, rows: np.ndarray) -> list[str]:
    """Return the beginnings of texts; none if the examples are no texts."""
    if not isinstance(examples.store, Tokens):
        return []
    store = examples.store.texts
    return [
        textwrap.shorten(printable(store.text(row)), LONGEST, placeholder=" ...")
        for row in examples.rows[rows].tolist()
    ]


def _pictures(examples: Examples, rows: np.ndarray) -> list[str]:
    """Return the examples as small pictures; none if they are not images."""
    if len(examples.shape) != 3:
        return []
    images = np.asarray(examples.take(rows))
    if images.shape[-1] not in (1, 3):
        images = images.mean(axis=-1, keepdims=True).astype(images.dtype)
    if images.dtype != np.uint8:
        low, high = float(np.nanmin(images)), float(np.nanmax(images))
        images = np.nan_to_num((images - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    return [_data_uri(image) for image in images]


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((LARGEST, LARGEST))
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
