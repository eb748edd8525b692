"""Matplotlib's drawings as SVG that is part of the page: its text, its colours in light and dark, its width.

A figure is drawn at the width of a phone, so that its text is never smaller than it should be; where there is more
room, figures stand side by side.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pcjax.report.page import Markup, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that nothing else has stand for the page's own, which are put in their places afterwards.
_NAMES = (
    "text",
    "muted",
    "line",
    "grid",
    "accent",
    "before",
    "ground",
    *(f"class-{place}" for place in range(10)),
)
COLOURS = {name: f"#f0fe{place + 16:02x}" for place, name in enumerate(_NAMES)}
CLASSES = [COLOURS[f"class-{place}"] for place in range(10)]
PIXELS_PER_INCH = 72  # of an SVG by matplotlib
HALO = "halo"


def draw(
    name: str,
    paint: Callable[["Axes"], None],
    alternative: str,
    *,
    width: int = 380,
    height: int = 270,
) -> Markup:
    """What `paint` draws, as an SVG element.

    Args:
      name: of the figure, unique on its page and of letters, digits and hyphens: it becomes part of the markup.
      paint: draws into the axes it is given, in `COLOURS`; text whose gid is `HALO` stands out from what is below it.
      alternative: what one sees, in words.
      width: in the page's pixels, at which the text has its own size.
      height: likewise.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
        # It is the reader's browser that has the letters, or not.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(
            figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        paint(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    return _of_the_page(name, written.getvalue(), alternative)


def _style(name: str) -> dict[Any, Any]:
    text, muted, line, grid = (COLOURS[part] for part in ("text", "muted", "line", "grid"))
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a class may be called "$5"
        "font.family": "DejaVu Sans",
        "font.size": 12.5,
        "axes.labelsize": 12.5,
        "axes.titlesize": 13,
        "axes.titlelocation": "left",
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "text.color": text,
        "axes.titlecolor": text,
        "axes.labelcolor": muted,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "axes.edgecolor": line,
        "grid.color": grid,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.8,
    }


def _of_the_page(name: str, svg: str, alternative: str) -> Markup:
    """The drawing without what belongs to a file of its own, and with the page's colours and names."""
    view = re.search(r'viewBox="([^"]+)"', svg)
    body = re.search(r"<svg[^>]*>(.*)</svg>", svg, re.DOTALL)
    if view is None or body is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    inside = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body[1], flags=re.DOTALL
    )
    inside = re.sub(rf'<g id="{HALO}">\s*<text', '<g><text class="halo"', inside)
    used = set(re.findall(r"#([\w-]+)[\")]", inside))
    inside = re.sub(
        r' id="([^"]+)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        inside,
    )
    inside = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', inside)
    inside = inside.replace("url(#", f"url(#{name}-")
    for colour, sentinel in COLOURS.items():
        inside = inside.replace(sentinel, f"var(--{colour})")
    inside = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", inside)
    inside = re.sub(r"\s*\n\s*", " ", inside)
    return tag("svg", Markup(inside), viewBox=view[1], role="img", aria_label=alternative)
