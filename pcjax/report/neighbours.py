"""Draw the nearest neighbours by teacher and student, as rows of pictures."""

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcjax.data import Examples
from pcjax.report.page import Markup, tag

LARGEST = 64  # pixels of a picture's longer side


class Seen(NamedTuple):
    """Sampled examples with their labels and class names."""

    examples: Examples  # all of them
    labels: np.ndarray | None  # of the sampled ones
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
      chosen: positions of the shown ones among the sampled, the least coherent first.
      coherence: student -> (n,) coherence with the teacher, seen from each example.
      near: model -> (n, k) the nearest of each example; the teacher comes first.
    """
    by = {who: of[chosen] for who, of in near.items()}
    (teacher, own), *students = by.items()
    k = own.shape[1]
    wanted = np.unique(np.concatenate([chosen, *(one.ravel() for one in by.values())]))
    pictures = _pictures(test.examples, places[wanted])
    shown = (
        {int(place): picture for place, picture in zip(wanted, pictures, strict=True)}
        if pictures
        else {}
    )

    def one(place: int, shared: bool = False) -> Markup:
        label = "" if test.labels is None else f", class {test.name_of(int(test.labels[place]))}"
        title = f"test example {places[place]}{label}{', shared' if shared else ''}"
        if not shown:
            return tag("span", f"{places[place]}{label.replace(', class', ':')}", title=title)
        return tag("img", src=shown[place], alt=title, title=title)

    def strip(who: str, nearest: np.ndarray, shared: set[int]) -> list[Markup]:
        cells = [
            tag("li", one(other, other in shared), class_="shared" if other in shared else None)
            for other in nearest.tolist()
        ]
        several = len(students) > 1 and who != teacher
        text = f"by {who}: {len(shared)} of {k} shared" if several else f"nearest by {who}"
        return [tag("div", text, class_="by"), tag("ol", *cells)]

    items = []
    for row, place in enumerate(chosen):
        shared = {who: set(own[row].tolist()) & set(of[row].tolist()) for who, of in students}
        kept = set.intersection(*shared.values())
        strips = strip(teacher, own[row], kept)
        for who, of in students:
            strips += strip(who, of[row], shared[who])
        label = "" if test.labels is None else f"class {test.name_of(int(test.labels[place]))}, "
        seen = sorted(float(of[place]) for of in coherence.values())
        text = f"{label}coherence {seen[0]:.3f}{f' to {seen[-1]:.3f}' if seen[1:] else ''}"
        text += f", {len(kept)} of {k} shared{' by all' if len(students) > 1 else ''}"
        item = tag("p", text), tag("div", one(int(place))), tag("div", *strips)
        items.append(tag("li", *item))
    return [tag("ul", *items, class_="rows")]


def _pictures(examples: Examples, rows: np.ndarray) -> list[str]:
    """Return the examples as small pictures; none where they are not images."""
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
