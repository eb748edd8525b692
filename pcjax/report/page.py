"""Write HTML: escape plain text, and keep everything in one file."""

import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence

VOID = ("br", "img", "meta", "link")
STYLE = pathlib.Path(__file__).with_name("style.css")
# The browser refuses every request, even one made by mistake.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: object) -> Markup:
    """Return an element; leave attributes of None out.

    `class_` becomes class, and `aria_label` aria-label.

    >>> print(tag("p", "1 < 2 ", tag("b", "so"), class_="note"))
    <p class="note">1 &lt; 2 <b>so</b></p>
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(content)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Join text and markup; escape the text."""
    return Markup(
        "".join(
            part if isinstance(part, Markup) else html.escape(part, quote=False) for part in parts
        )
    )


def page(title: str, lead: Sequence[str], sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return the whole document."""
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
    """Return a table that scrolls where it is too wide; its first column names the rows.

    Args:
      caption: text above the table.
      columns: names of all columns.
      rows: text or markup of every cell.
      shades: of a matrix, the strength of each cell's colour, from 0 to 1.
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
    """Return a figure with its caption."""
    return tag("figure", content, tag("figcaption", caption), class_=class_)


def terms(pairs: Mapping[str, str]) -> Markup:
    """Return a list of terms and their values."""
    return tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items())
    )


def details(summary: str, text: str) -> Markup:
    """Return a folded text."""
    return tag("details", tag("summary", summary), tag("pre", text, tabindex="0"))
