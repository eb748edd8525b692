"""Test reports in a browser: figures, readability on a phone and in the dark, no requests."""

import re

import pytest
from browser import browser, missing
from small import QUICK
from synthetic import page_of, write_comparison

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        bool(missing()), reason=f"needs {' and '.join(missing())} on the PATH (Debian's packages)"
    ),
]
SIZES = """return [...document.querySelectorAll('svg, img')]
    .map(e => e.getBoundingClientRect()).map(box => [box.width, box.height])"""
DRAWN = """return [...document.querySelectorAll('svg, img')].every(e => {
    if (e instanceof HTMLImageElement) return e.complete && e.naturalWidth > 0;
    const box = e.getBBox();
    return box.width > 0 && box.height > 0;
})"""
WIDE = "return [document.documentElement.scrollWidth, window.innerWidth]"
TEXTS = """
return [...document.querySelectorAll('svg text')].filter(e => e.textContent.trim()).map(e => {
    const box = e.getBoundingClientRect(), frame = e.closest('svg').getBoundingClientRect();
    const scale = frame.width / e.closest('svg').viewBox.baseVal.width;
    return [e.textContent, parseFloat(getComputedStyle(e).fontSize) * scale,
            box.left - frame.left, frame.right - box.right,
            box.top - frame.top, frame.bottom - box.bottom];
})"""
COLOURS = """
const all = 'p, td, th, caption, figcaption, a, dt, dd, svg text';
return [...document.querySelectorAll(all)]
    .filter(e => e.textContent.trim() && e.getBoundingClientRect().width)
    .map(e => getComputedStyle(e)[e instanceof SVGElement ? 'fill' : 'color'])"""


def luminance(colour):
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """Compute the contrast of two colours as WCAG defines it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


LONG = "a_loss_with_a_name_that_is_far_too_long_for_a_chart"


@pytest.fixture(scope="module")
def reports(tmp_path_factory, run_command):
    """Draw a run, a made-up comparison and a trained one."""
    folder = tmp_path_factory.mktemp("reports")
    made_up = folder / "made_up"
    write_comparison(made_up, ("perception_coherence", LONG, "crd", "kd"), diverged={("kd", 0)})
    page_of(made_up)
    assert run_command("distill", *QUICK, "--workdir", folder / "run") == 0
    words = ["--losses", "pkt,kd", "--seeds", "1", "--workdir", folder / "compared"]
    assert run_command("compare", *QUICK, *words) == 0
    return [folder / name / "report.html" for name in ("run", "made_up", "compared")]


def test_reports_in_a_browser(reports):
    with browser() as chromium:
        for path in reports:
            grounds = set()
            for width, dark in ((1280, False), (390, False), (390, True)):
                chromium.requests()
                chromium.open(path, width=width, dark=dark)
                assert {url for url in chromium.requests() if not url.startswith("data:")} == {
                    path.as_uri()
                }
                assert chromium.console() == []
                sizes = chromium.run(SIZES)
                assert sizes
                assert all(w > 20 and h > 20 for w, h in sizes)
                assert chromium.run(DRAWN)
                whole, window = chromium.run(WIDE)
                assert whole <= window == width
                for text, size, *margins in chromium.run(TEXTS):
                    assert size >= 9.5, (text, size)
                    assert min(margins) > -2, (text, margins)
                ground = chromium.run("return getComputedStyle(document.body).backgroundColor")
                grounds.add(ground)
                for colour in set(chromium.run(COLOURS)):
                    assert contrast(colour, ground) >= 4.5, (colour, ground)
            assert len(grounds) == 2
