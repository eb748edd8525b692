"""Draw docs/idea.svg: two maps whose geometry differs and whose orders of distances are equal.

Run it in the repository: python docs/draw_idea.py
"""

import pathlib

import numpy as np

NAMES = "ABCDE"
TEACHER = np.array([(0.39, 0.35), (0.84, 0.93), (0.09, 0.61), (0.84, 0.63), (0.75, 0.41)])
STUDENT = np.array([(0.24, 0.70), (0.99, 0.99), (0.06, 0.13), (0.93, 0.47), (0.60, 0.56)])
SIZE, MARGIN, GAP, TOP, BOTTOM = 240, 40, 60, 50, 70
WIDTH, HEIGHT = 2 * (SIZE + MARGIN) + GAP, SIZE + TOP + BOTTOM
AGREE = "They agree from B, C, D and E too: this student is coherent with its teacher."
COLOURS = ("#1d4ed8", "#b45309", "#b45309", "#b45309", "#b45309")


def order(points: np.ndarray) -> np.ndarray:
    """Return from every example the others, the nearest first."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.argsort(distances, axis=1)[:, 1:]


def panel(points: np.ndarray, left: int, title: str) -> list[str]:
    """Draw one map: the points, and the ranks of the others seen from A."""
    places = np.column_stack([left + SIZE * points[:, 0], TOP + SIZE * (1 - points[:, 1])])
    (ax, ay), middle = places[0], left + SIZE / 2
    parts = [f'<text x="{middle}" y="28" class="title">{title}</text>']
    for rank, i in enumerate(order(points)[0], 1):
        x, y = places[i]
        parts.append(f'<line x1="{ax:.0f}" y1="{ay:.0f}" x2="{x:.0f}" y2="{y:.0f}"/>')
        parts.append(f'<text x="{x:.0f}" y="{y - 18:.0f}" class="rank">{rank}</text>')
    for name, colour, (x, y) in zip(NAMES, COLOURS, places, strict=True):
        parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="14" fill="{colour}"/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" class="name">{name}</text>')
    return parts


def main() -> None:
    """Write the picture."""
    if not np.array_equal(order(TEACHER), order(STUDENT)):
        raise ValueError("The two maps order the examples differently.")
    seen = ", ".join(NAMES[i] for i in order(TEACHER)[0])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">',
        "<style>text { font: 15px sans-serif; text-anchor: middle; fill: #1f2937 }",
        ".title { font-weight: bold } .name { fill: white; font-weight: bold }",
        ".rank { fill: #6b7280 } line { stroke: #9ca3af; stroke-dasharray: 4 4 }</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="white"/>',
        *panel(TEACHER, MARGIN, "teacher"),
        *panel(STUDENT, MARGIN + SIZE + GAP, "student"),
        *(
            f'<text x="{WIDTH / 2}" y="{HEIGHT - y}">{line}</text>'
            for y, line in ((34, f"From A both see, the nearest first: {seen}."), (12, AGREE))
        ),
        "</svg>\n",
    ]
    pathlib.Path(__file__).with_name("idea.svg").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
