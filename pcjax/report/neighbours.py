"""Nearest neighbours of teacher and student, as rows of pictures."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcjax.data import Examples
from pcjax.report import space
from pcjax.report.page import Markup, tag

WORST, MIDDLE, BEST, SHOWN = 6, 3, 3, 6
LARGEST = 64  # pixels of a picture's longer side


class Seen(NamedTuple):
    """Examples that were sampled, and what is known of them."""

    examples: Examples  # all of them
    labels: np.ndarray | None  # of the sampled ones
    classes: list[str]

    def name_of(self, label: int) -> str:
        """What a class is called."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"{label}" if label >= 0 else "unknown"


def rows_of(
    test: Seen, places: np.ndarray, coherence: np.ndarray, teacher: np.ndarray, student: np.ndarray
) -> list[Markup]:
    """Examples seen most differently, and some usual ones, with their nearest as both models see them.

    Args:
      test: the examples that were sampled.
      places: (n,) where they are among all.
      coherence: (n,) of teacher and student, seen from each.
      teacher: (n, n) ranks.
      student: (n, n) ranks.
    """
    chosen = space.telling(coherence, WORST, MIDDLE, BEST)
    k = min(SHOWN, len(places) - 1)
    near = [space.nearest(of[chosen], k) for of in (teacher, student)]
    wanted = np.unique(np.concatenate([chosen, *(one.ravel() for one in near)]))
    pictures = _pictures(test.examples, places[wanted])
    shown = {int(place): picture for place, picture in zip(wanted, pictures, strict=True)} if pictures else {}

    def one(place: int, shared: bool = False) -> Markup:
        label = "" if test.labels is None else f", class {test.name_of(int(test.labels[place]))}"
        said = f"test example {places[place]}{label}{', near to both' if shared else ''}"
        if not shown:
            return tag("span", f"{places[place]}{label.replace(', class', ':')}", title=said)
        return tag("img", src=shown[place], alt=said, title=said)

    items = []
    for row, place in enumerate(chosen):
        by = [[int(other) for other in of[row]] for of in near]
        both = set(by[0]) & set(by[1])
        strips = []
        for who, nearest in zip(("teacher", "student"), by, strict=True):
            cells = [
                tag("li", one(other, other in both), class_="shared" if other in both else None) for other in nearest
            ]
            strips += [tag("div", f"nearest by the {who}", class_="by"), tag("ol", *cells)]
        label = "" if test.labels is None else f"class {test.name_of(int(test.labels[place]))}, "
        said = f"{label}coherence {coherence[place]:.3f}, {len(both)} of {k} shared"
        items.append(tag("li", tag("p", said), tag("div", one(int(place))), tag("div", *strips)))
    how = (
        f"Test examples and their {k} nearest among the {len(places):,} sampled, the nearest first, as teacher and "
        f"student see them; what both have among them is framed. First the {min(WORST, len(chosen))} whose "
        "surroundings the student sees most differently, then usual ones, then those it sees most alike."
    )
    return [tag("p", how), tag("ul", *items, class_="rows")]


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
