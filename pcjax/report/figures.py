"""Draw with matplotlib, as SVG in the page's font, colours and width.

A figure is as wide as a phone, so that its text stays readable there. Wider screens show several
side by side.
"""

import base64
import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pcjax.report.page import STYLE, Markup, joined, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Unique placeholders, which the page's colours replace afterwards.
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
SMALL = 180  # pixels of a panel among many; only larger figures can be saved
PIXELS_PER_INCH = 72  # of matplotlib's SVG
HALO = "halo"


def draw(
    name: str,
    paint: Callable[["Axes"], None],
    alternative: str,
    *,
    width: int = 380,
    height: int = 270,
) -> Markup:
    """Return the drawing of `paint` as an SVG element.

    Args:
      name: unique on its page; letters, digits and hyphens.
      paint: draws into the axes, in `COLOURS`; text with the gid `HALO` gets an outline.
      alternative: a description in words.
      width: in the page's pixels.
      height: in the page's pixels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
        # The reader's browser draws the letters.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        size = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        figure = Figure(size, dpi=PIXELS_PER_INCH, layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        paint(axes)
        # Lay out here: savefig would draw everything once more.
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
        figure.set_layout_engine("none")
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    return _of_the_page(name, written.getvalue(), alternative, saved=width > SMALL)


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


def _of_the_page(name: str, svg: str, alternative: str, saved: bool) -> Markup:
    """Return matplotlib's SVG in the page's colours, and a link that saves it."""
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
        lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "",
        inside,
    )
    inside = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', inside)
    inside = inside.replace("url(#", f"url(#{name}-")
    for colour, placeholder in COLOURS.items():
        inside = inside.replace(placeholder, f"var(--{colour})")
    inside = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", inside)
    inside = re.sub(r"\s*\n\s*", " ", inside)
    drawing = tag("svg", Markup(inside), viewBox=view[1], role="img", aria_label=alternative)
    return joined([drawing, _saved(name, svg)]) if saved else drawing


def _saved(name: str, svg: str) -> Markup:
    """Return a link that saves a drawing as a file, in the page's light colours."""
    for colour, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, _light_colours()[colour])
    address = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return tag("a", "save as SVG", class_="save", download=f"{name}.svg", href=address)


@functools.cache
def _light_colours() -> dict[str, str]:
    """Return the light colours of the style sheet; they come before the dark ones."""
    colours = re.findall(r"--([\w-]+):\s*(#[0-9a-fA-F]+)", STYLE.read_text())
    return dict(reversed(colours))  # the first of a name wins
