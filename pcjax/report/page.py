"""HTML: text is escaped unless it is markup already; one page that needs nothing but itself."""

import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence

VOID = ("br", "img", "meta", "link")
STYLE = pathlib.Path(__file__).with_name("style.css")
# A page that may load nothing: even a mistake in it reaches no network.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: object) -> Markup:
    """An element; `class_` gives class, `aria_label` aria-label, an attribute that is None is left out.

    >>> print(tag("p", "1 < 2 ", tag("b", "so"), class_="note"))
    <p class="note">1 &lt; 2 <b>so</b></p>
    """
    given = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None
    }
    written = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(content)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """One piece of markup, in which what was text is escaped."""
    return Markup(
        "".join(
            part if isinstance(part, Markup) else html.escape(part, quote=False) for part in parts
        )
    )


def page(title: str, lead: Sequence[str], sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole document: a title, what stands below it, and the sections by their titles."""
    named = [
        (f"section-{place}", name, content) for place, (name, content) in enumerate(sections, 1)
    ]
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in named]
    body = [
        tag("header", tag("h1", title), *lead),
        tag("nav", tag("ul", *links), aria_label="Contents"),
        tag(
            "main",
            *(
                tag("section", tag("h2", name, id=anchor), *content, aria_labelledby=anchor)
                for anchor, name, content in named
            ),
        ),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(STYLE.read_text())),
    ]
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float]] | None = None,
) -> Markup:
    """A table whose first column names the rows; where it is too wide, it scrolls and not the page.

    Args:
      caption: what it shows.
      columns: their names, that of the first included.
      rows: text, or markup, of every cell.
      shades: of a matrix, how strongly each cell is coloured, from 0 to 1.
    """
    body = []
    for place, (name, *cells) in enumerate(rows):
        styles = (
            [f"--share:{shade:.3f}" for shade in shades[place]]
            if shades is not None
            else [None] * len(cells)
        )
        shown = [tag("td", cell, style=style) for cell, style in zip(cells, styles, strict=True)]
        body.append(tag("tr", tag("th", name, scope="row"), *shown))
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    kind = "matrix" if shades is not None else None
    whole = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=kind
    )
    return tag(
        "div", whole, class_="scroll", role="region", aria_label=f"Table: {caption}", tabindex="0"
    )


def figure(content: str, caption: str, class_: str | None = None) -> Markup:
    """What there is to see, and how to read it."""
    return tag("figure", content, tag("figcaption", caption), class_=class_)


def terms(pairs: Mapping[str, str]) -> Markup:
    """Names and what they are."""
    return tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items())
    )


def details(summary: str, text: str) -> Markup:
    """What only some readers want to see."""
    return tag("details", tag("summary", summary), tag("pre", text, tabindex="0"))
