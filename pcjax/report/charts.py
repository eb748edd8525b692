"""Draw the charts of a report, each from its numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pcjax.report.figures import CLASSES, COLOURS, HALO, SMALL, draw
from pcjax.report.page import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (SMALL, SMALL)
MOST_POINTS = 400  # of a curve; a figure has fewer pixels
FEW_POINTS = 12  # of a curve; each is marked


class Curve(NamedTuple):
    """Values by step; NaN where a value was not finite."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def marker(self) -> str:
        """Return the marker of the points: a curve of one point has no line."""
        return "." if len(self.steps) <= FEW_POINTS else ""

    def thinned(self) -> "Curve":
        """Keep at most 400 points, the last one among them."""
        places = np.unique(
            np.linspace(0, len(self.steps) - 1, min(len(self.steps), MOST_POINTS)).astype(int)
        )
        return Curve(self.steps[places], self.values[places])


def curve_of(records: Sequence[Mapping[str, object]], name: str) -> Curve:
    """Return the curve of a metric in the lines of metrics.jsonl."""
    lines = [record for record in records if name in record]
    values = [value if isinstance(value := line[name], (int, float)) else np.nan for line in lines]
    steps = [line["step"] for line in lines]
    return Curve(np.array(steps, np.float64), np.array(values, np.float64))


def curves(name: str, title: str, shown: Mapping[str, Curve], alternative: str) -> Markup:
    """Draw curves over the training steps, each with its own dashes."""

    def paint(axes: "Axes") -> None:
        colours = [
            COLOURS["accent"],
            COLOURS["before"],
            COLOURS["muted"],
            COLOURS["class-4"],
            COLOURS["class-9"],
        ]
        dashes = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]
        for place, (label, curve) in enumerate(shown.items()):
            thin = curve.thinned()
            axes.plot(
                thin.steps,
                thin.values,
                label=label,
                marker=thin.marker,
                color=colours[place % 5],
                linestyle=dashes[place % 5],
            )
        axes.set_title(title)
        axes.set_xlabel("step")
        if len(shown) > 1:
            axes.legend(frameon=False, fontsize=12)
        if axes.get_ylim()[1] > 1 and not any(np.any(curve.values > 1) for curve in shown.values()):
            axes.set_ylim(top=1.005)

    return draw(name, paint, alternative, width=290, height=215)


def histogram(name: str, shown: Mapping[str, np.ndarray], alternative: str) -> Markup:
    """Draw histograms of coherence per anchor, before and after training."""

    def paint(axes: "Axes") -> None:
        least = min(0.0, *(float(values.min()) for values in shown.values()))
        edges = np.linspace(np.floor(least * 10) / 10, 1, 41)
        for place, (label, values) in enumerate(shown.items()):
            colour = COLOURS[("before", "accent")[place]]
            share = np.histogram(np.minimum(values, 1), edges)[0] / len(values) * 100
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
            style = ("--", "-")[place]
            axes.stairs(share, edges, color=colour, linewidth=1.6, linestyle=style, label=label)
        axes.set_xlabel("rank correlation seen from an anchor")
        axes.set_ylabel("% of the anchors")
        axes.legend(frameon=False, loc="upper left")

    return draw(name, paint, alternative)


def rank_density(
    name: str, title: str, values: np.ndarray, alternative: str, size: tuple[int, int] = (340, 340)
) -> Markup:
    """Draw the teacher's ranks against the student's, over all pairs of examples."""

    def paint(axes: "Axes") -> None:
        _cells(axes, values / max(float(values.max()), 1e-9))
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=":")
        if title:
            axes.set_title(title)
            axes.set_xlabel("the teacher's rank, nearest to farthest")
            axes.set_ylabel("the student's rank")

    return draw(name, paint, alternative, width=size[0], height=size[1])


def confusion_map(name: str, shares: np.ndarray, alternative: str) -> Markup:
    """Draw a confusion matrix as a small panel: true classes are rows, the first on top."""
    return draw(
        name, lambda axes: _cells(axes, shares.T[:, ::-1]), alternative, width=SMALL, height=SMALL
    )


def _cells(axes: "Axes", values: np.ndarray) -> None:
    """Draw values as coloured squares; the first index goes across, the second up."""
    from matplotlib.collections import PolyCollection

    bins = len(values)
    corners = [
        [(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)]
        for x in range(bins)
        for y in range(bins)
        if values[x, y] > 0
    ]
    outlines = [[(x / bins, y / bins) for x, y in corner] for corner in corners]
    colours = [_rgba(COLOURS["accent"], float(one)) for one in np.sqrt(values[values > 0])]
    axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors="none"))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(True)


def _rgba(colour: str, alpha: float) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(colour, round(alpha, 2))


def scatter(
    name: str,
    title: str,
    points: np.ndarray,
    groups: Mapping[str, np.ndarray],
    alternative: str,
    small: bool = False,
) -> Markup:
    """Draw each example as a dot, and each group in its colour with its name in the middle.

    Args:
      name: unique name of the figure.
      title: its title.
      points: (n, 2).
      groups: positions by group name, at most ten groups; all other dots are grey.
      alternative: a description in words.
      small: draw one panel of many, without title and names.
    """

    def paint(axes: "Axes") -> None:
        rest = np.ones(len(points), bool)
        for members in groups.values():
            rest[members] = False
        size = 5 if small else 14 if len(points) <= 500 else 7
        # Coloured dots must stand out among grey ones.
        larger = 2 * size if groups and rest.any() else size
        for colour, members in zip(CLASSES, groups.values(), strict=False):
            axes.scatter(*points[members].T, s=larger, color=colour, alpha=0.65, linewidths=0)
        colour, strength = (COLOURS["muted"], 0.3) if groups else (COLOURS["accent"], 0.5)
        axes.scatter(*points[rest].T, s=size, color=colour, alpha=strength, linewidths=0, zorder=0)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["top", "right"]].set_visible(True)
        if small:
            return
        axes.set_title(title)
        for label, colour, (x, y) in zip(groups, CLASSES, _middles(points, groups), strict=False):
            shown = {"color": colour, "fontsize": 13, "fontweight": "bold", "gid": HALO}
            axes.text(x, y, _short(label, 14), ha="center", va="center", **shown)

    width, height = (SMALL, SMALL) if small else (340, 350)
    return draw(name, paint, alternative, width=width, height=height)


def _middles(points: np.ndarray, groups: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return a position for each group's name: the middle, moved up where names overlap."""
    middles = [np.median(points[members], axis=0) for members in groups.values()]
    line = 0.055 * float(np.ptp(points, axis=0).max())  # height of a line of text
    labels = list(groups)
    placed: dict[int, np.ndarray] = {}
    for group in sorted(range(len(middles)), key=lambda i: float(middles[i][1])):
        position = middles[group]
        wide = 0.6 * line * (1 + min(len(labels[group]), 14))
        for other in sorted(placed.values(), key=lambda point: float(point[1])):
            if abs(other[0] - position[0]) < wide and abs(position[1] - other[1]) < line:
                position = np.array([position[0], other[1] + line])
        placed[group] = position
    return [placed[group] for group in range(len(middles))]


class Interval(NamedTuple):
    """A mean and its 95 % interval, None with too few seeds; `ring` draws the mean as a ring."""

    mean: float
    low: float | None = None
    high: float | None = None
    ring: bool = False


def intervals(
    name: str,
    title: str,
    shown: Mapping[str, Interval],
    alternative: str,
    *,
    lines: Mapping[str, float] | None = None,
    zero: bool = False,
) -> Markup:
    """Draw a row for each name, with the mean as a dot or ring and its interval as a line.

    `lines` are vertical lines by their dashes.
    """

    def paint(axes: "Axes") -> None:
        for place, (mean, low, high, ring) in enumerate(shown.values()):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=COLOURS["accent"], linewidth=2)
            face = COLOURS["ground"] if ring else COLOURS["accent"]
            style = {"color": COLOURS["accent"], "markerfacecolor": face, "markersize": 7}
            axes.plot(mean, place, "o", **style)
        if zero:
            axes.axvline(0, color=COLOURS["muted"], linewidth=1.2, zorder=0.5)
        left, right = axes.get_xlim()
        reach = (right - left) / 2
        for dash, value in (lines or {}).items():
            if left - reach <= value <= right + reach:
                axes.axvline(
                    value, color=COLOURS["muted"], linestyle=dash, linewidth=1.4, zorder=0.5
                )
        _names(axes, list(shown))
        axes.set_title(title)

    return draw(
        name,
        paint,
        alternative,
        height=60 + len(shown) * (32 if any("\n" in label for label in shown) else 22),
    )


def bars(name: str, title: str, shown: Mapping[str, float], alternative: str) -> Markup:
    """Draw a bar for each name, with its value at the end."""

    def paint(axes: "Axes") -> None:
        drawn = axes.barh(
            range(len(shown)), list(shown.values()), height=0.6, color=COLOURS["accent"], alpha=0.55
        )
        axes.bar_label(drawn, [f"{value:.3g}" for value in shown.values()], padding=3, fontsize=12)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        _names(axes, list(shown))
        axes.set_title(title)

    return draw(name, paint, alternative, height=60 + 21 * len(shown))


def _names(axes: "Axes", names: Sequence[str]) -> None:
    """Name the rows of a chart from the top."""
    axes.set_yticks(range(len(names)), [_short(name, 28) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["text"])
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=4)


def _short(text: str, most: int) -> str:
    """Cut every line to `most` letters."""
    return "\n".join(
        line if len(line) <= most else line[: most - 1] + "…" for line in text.split("\n")
    )


def against_all(
    name: str,
    own: Sequence[Curve],
    all_: Sequence[Curve],
    limits: tuple[float, float],
    alternative: str,
) -> Markup:
    """Draw the runs of one loss in front of all runs in grey."""

    def paint(axes: "Axes") -> None:
        for curve in all_:
            axes.plot(*curve, color=COLOURS["line"], linewidth=0.8)
        for curve in own:
            axes.plot(*curve, marker=curve.marker, color=COLOURS["accent"], linewidth=1.8)
        axes.set_ylim(*limits)
        axes.locator_params(nbins=3)

    return draw(name, paint, alternative, width=SMALL, height=115)


def histogram_against_all(
    name: str, own: np.ndarray, all_: np.ndarray, edges: np.ndarray, top: float, alternative: str
) -> Markup:
    """Draw one student's histogram in %, in front of all students' histogram in grey."""

    def paint(axes: "Axes") -> None:
        axes.stairs(all_, edges, color=COLOURS["line"], linewidth=1.4)
        axes.stairs(own, edges, fill=True, color=COLOURS["accent"], alpha=0.4, linewidth=0)
        axes.stairs(own, edges, color=COLOURS["accent"], linewidth=1.4)
        axes.set_ylim(0, top)
        axes.locator_params(nbins=3)

    return draw(name, paint, alternative, width=SMALL, height=115)
