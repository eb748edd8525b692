"""Nearest neighbours of teacher and student, as rows of pictures."""

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
    """Examples that were sampled, and what is known of them."""

    examples: Examples  # all of them
    labels: np.ndarray | None  # of the sampled ones
    classes: list[str]

    def name_of(self, label: int) -> str:
        """What a class is called."""
        return (
            self.classes[label]
            if 0 <= label < len(self.classes)
            else f"{label}"
            if label >= 0
            else "unknown"
        )


def rows_of(
    test: Seen,
    places: np.ndarray,
    chosen: np.ndarray,
    coherence: Mapping[str, np.ndarray],
    near: Mapping[str, np.ndarray],
) -> list[Markup]:
    """Examples with their nearest, as every model sees them.

    Args:
      test: the examples that were sampled.
      places: (n,) where they are among all.
      chosen: which of the sampled ones are shown, those seen most differently first.
      coherence: (n,) of the teacher with each student, seen from each.
      near: (n, k) the nearest of each; the teacher's first, then the students', by their names.
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
        said = f"test example {places[place]}{label}{', shared' if shared else ''}"
        if not shown:
            return tag("span", f"{places[place]}{label.replace(', class', ':')}", title=said)
        return tag("img", src=shown[place], alt=said, title=said)

    def strip(who: str, nearest: np.ndarray, shared: set[int]) -> list[Markup]:
        cells = [
            tag("li", one(other, other in shared), class_="shared" if other in shared else None)
            for other in nearest.tolist()
        ]
        several = len(students) > 1 and who != teacher
        said = f"by {who}: {len(shared)} of {k} shared" if several else f"nearest by {who}"
        return [tag("div", said, class_="by"), tag("ol", *cells)]

    items = []
    for row, place in enumerate(chosen):
        shared = {who: set(own[row].tolist()) & set(of[row].tolist()) for who, of in students}
        kept = set.intersection(*shared.values())
        strips = strip(teacher, own[row], kept)
        for who, of in students:
            strips += strip(who, of[row], shared[who])
        label = "" if test.labels is None else f"class {test.name_of(int(test.labels[place]))}, "
        seen = sorted(float(of[place]) for of in coherence.values())
        said = (
            f"coherence {seen[0]:.3f}"
            if len(seen) == 1
            else f"coherence {seen[0]:.3f} to {seen[-1]:.3f}"
        )
        said += f", {len(kept)} of {k} shared{' by all' if len(students) > 1 else ''}"
        items.append(
            tag("li", tag("p", f"{label}{said}"), tag("div", one(int(place))), tag("div", *strips))
        )
    return [tag("ul", *items, class_="rows")]


def _pictures(examples: Examples, rows: np.ndarray) -> list[str]:
    """The examples as small pictures; none, if they are no images."""
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
