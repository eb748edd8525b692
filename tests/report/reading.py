"""Read a report with a parser."""

import html.parser
import itertools
import re

VOID = {"br", "img", "meta", "link"}
OWN = ("#", "data:image/png;base64,", "data:image/svg+xml;base64,", "runs/")
HEADINGS = ("h1", "h2", "h3", "h4")


class Page(html.parser.HTMLParser):
    """Collect all elements with attributes and texts; refuse unclosed ones."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.wrong = [], [], []
        self.texts = {}
        self.feed(text)
        self.close()
        assert not self.open, self.open
        assert not self.wrong, self.wrong

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, []))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append((tag, self.getpos()))
            return
        self.texts.setdefault(tag, []).append(" ".join("".join(self.open.pop()[1]).split()))

    def handle_data(self, data):
        for _, text in self.open:
            text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check(text):
    """Check a report for the properties of all reports; return the page."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["lang"] == "en"
    assert len(text) < 5e6
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action"):
                assert value.startswith(OWN), value
            assert "url(" not in value.replace("url(#", "")
    assert not re.search(r"@import|url\(", page.texts["style"][0])
    for image in page.all("img"):
        assert image["alt"]
    for drawing in page.all("svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-label"]
    levels = [HEADINGS.index(tag) for tag, _ in page.elements if tag in HEADINGS]
    assert levels[0] == 0
    assert levels.count(0) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("table")) == len(page.texts.get("caption", []))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"][1:] for link in page.all("a") if link["href"][0] == "#"]
    links += re.findall(r"url\(#([^)]+)\)", text)
    links += [use.get("xlink:href", use.get("href"))[1:] for use in page.all("use")]
    assert set(links) <= set(ids)
    assert "#f0fe" not in text  # every colour is the page's own
    assert len(page.texts["figcaption"]) == len(page.all("figure"))
    return page
