"""The picture of the first page, as SVG: beside each other for a desk, below each other for a phone.

`python -m lab.pictures.front_page`, in the folder `book`, writes both files. A leaf's shades are its numbers,
a product's shades are the products of them.
"""

from collections.abc import Sequence
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "images"
BLUE, GREEN, ORANGE, SLATE, BLACK = "#0072B2", "#009E73", "#E69F00", "#47606F", "#222222"

FIRST = [[0.9, 0.5, 0.7, 0.3], [0.4, 0.9, 0.3, 0.7], [0.7, 0.3, 0.9, 0.5]]  # leaves of the first order
SECOND = [[0.8, 0.4, 0.9, 0.6], [0.5, 0.9, 0.4, 0.8], [0.9, 0.6, 0.5, 0.3]]  # and of the second
WEIGHTS = [0.6, 0.1, 0.3], [0.2, 0.5, 0.3]  # of a task; TensorPoly-I has the first ones alone

WIDTH, HEIGHT = 230, 168  # of a panel
CELL, THIN = 10, 5  # widths of a number in a leaf and in a row of A
TITLE = "How LoRA, TensorPoly-I and TensorPoly-II make the factor A of a task"


def product(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """Tensor product of two leaves, in a row."""
    return [a * b for a in left for b in right]


def mixture(weights: Sequence[float], vectors: Sequence[Sequence[float]]) -> list[float]:
    """Weighted sum of vectors."""
    return [
        sum(w * value for w, value in zip(weights, values, strict=True))
        for values in zip(*vectors, strict=True)
    ]


def text(x, y, words, size=13, anchor="middle", color=BLACK, weight="normal"):
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{color}" '
        f'font-weight="{weight}">{words}</text>'
    )


def box(x, y, width, height, color, opacity=1.0):
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{color}" '
        f'fill-opacity="{opacity:.2f}" stroke="#555555" stroke-width="0.7"/>'
    )


def row(x, y, values, color, cell=CELL):
    """A vector as a row of cells, the largest number darkest."""
    top = max(values)
    return [box(x + i * cell, y, cell, 14, color, 0.9 * value / top) for i, value in enumerate(values)]


def weight(x, y, value):
    """A routing weight as a disc whose area is the weight."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="{10 * value**0.5:.2f}" fill="{ORANGE}" stroke="#7A5200"/>'


def rule(x, y, width):
    """The line over a sum."""
    return f'<path d="M{x:g} {y:g}h{width:g}" stroke="{BLACK}"/>'


def heading(name, words):
    return [text(WIDTH / 2, 18, name, 16, weight="bold"), text(WIDTH / 2, 38, words, color="#444444")]


def lora():
    return [
        *heading("LoRA", "one thin A and B for all tasks"),
        box(20, 62, 80, 80, "#DDDDDD"),
        text(60, 107, "W", 16),
        text(116, 108, "+", 18),
        box(132, 62, 12, 80, BLUE, 0.6),
        text(138, 158, "B"),
        box(150, 62, 70, 12, BLUE, 0.6),
        text(185, 91, "A"),
    ]


def tensorpoly_1():
    drawn = heading("TensorPoly-I", "multiply leaves, then mix")
    products = [product(*leaves) for leaves in zip(FIRST, SECOND, strict=True)]
    for k, values in enumerate(products):
        y = 56 + 24 * k
        drawn += [weight(10, y + 7, WEIGHTS[0][k])]
        drawn += [*row(24, y, FIRST[k], BLUE), text(73, y + 12, "⊗", 15), *row(82, y, SECOND[k], GREEN)]
        drawn += [text(133, y + 12, "="), *row(144, y, values, SLATE, THIN)]
    drawn += [rule(140, 126, 88), text(132, 145, "row of A", anchor="end")]
    return [*drawn, *row(144, 134, mixture(WEIGHTS[0], products), BLACK, THIN)]


def tensorpoly_2():
    drawn = heading("TensorPoly-II", "mix leaves, then multiply")
    mixed = []
    for x, leaves, weights, color in ((0, FIRST, WEIGHTS[0], BLUE), (68, SECOND, WEIGHTS[1], GREEN)):
        for k, leaf in enumerate(leaves):
            y = 56 + 24 * k
            drawn += [weight(x + 10, y + 7, weights[k]), *row(x + 22, y, leaf, color)]
        mixed += [mixture(weights, leaves)]
        drawn += [rule(x + 18, 126, 48), *row(x + 22, 134, mixed[-1], color)]
    drawn += [text(76, 146, "⊗", 15), text(140, 146, "="), *row(150, 134, product(*mixed), BLACK, THIN)]
    return [*drawn, text(190, 124, "row of A")]


def legend(places):
    (x, y), (x2, y2) = places
    return [
        weight(x, y, 0.4),
        text(x + 13, y + 5, "routing weight of a task", anchor="start"),
        *row(x2, y2 - 7, FIRST[0], BLUE),
        text(x2 + 48, y2 + 5, "leaf: a few trained numbers", anchor="start"),
    ]


def drawing(width: int, height: int, places, legend_places) -> str:
    """The three panels, each at its place, on a white ground."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" aria-labelledby="title">',
        f'<title id="title">{TITLE}</title>',
        f'<rect width="{width}" height="{height}" rx="8" fill="white"/>',
    ]
    for (x, y), panel in zip(places, (lora, tensorpoly_1, tensorpoly_2), strict=True):
        lines += [f'<g transform="translate({x} {y})">', *panel(), "</g>"]
    return "\n".join([*lines, *legend(legend_places), "</svg>\n"])


def drawings() -> dict[str, str]:
    """{name of the file: SVG}."""
    beside = [(i * (WIDTH + 20) + 10, 8) for i in range(3)]
    below = [(55, i * (HEIGHT + 14) + 8) for i in range(3)]
    return {
        "idea.svg": drawing(750, 222, beside, [(150, 204), (390, 204)]),
        "idea_narrow.svg": drawing(340, 608, below, [(66, 562), (56, 586)]),
    }


if __name__ == "__main__":
    for name, svg in drawings().items():
        (IMAGES / name).write_text(svg)
