"""Pictures that a reader moves: leaves that multiply, a task's routing, a film of routing that is learned.

Each function returns a cell's output: HTML with a picture, sliders, and the script that moves it, so that it
needs no network and no other file. Where scripts don't run, the picture stands still.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import minitensorpoly as mtp

HERE = Path(__file__).parent
MATHEMATICS = HERE.parents[1] / "_static" / "tensorpoly.js"
CELL = 22  # pixels


class Motion:
    """A picture with sliders, shown as the output of a cell.

    Args:
        kind: a function in `motion.js`.
        panels: HTML of the drawings.
        controls: HTML of the sliders.
        data: what the function needs besides the sliders, as JSON.
    """

    def __init__(self, kind: str, panels: Sequence[str], controls: Sequence[str], **data):
        self.kind, self.panels, self.controls, self.data = kind, panels, controls, data

    def _repr_html_(self) -> str:
        name, data = f"motion-{self.kind}", json.dumps({"kind": self.kind, **self.data})
        script = (HERE / "motion.js").read_text().rstrip()
        return f"""<div class="motion" id="{name}">
<style>{(HERE / "motion.css").read_text()}</style>
<div class="panels">{"".join(self.panels)}</div>
<div class="controls" hidden>{"".join(self.controls)}</div>
<script>{MATHEMATICS.read_text()}
{script}("{name}", {data});</script>
</div>"""


def leaves(first: Sequence[float], second: Sequence[float]) -> Motion:
    """Two leaves, their product as a grid and as a row; a slider for each number of a leaf.

    Args:
        first: q numbers between -1 and 1.
        second: as many.
    """
    q, product = len(first), mtp.tensor_product([torch.tensor(first), torch.tensor(second)]).tolist()
    left = _panel("first leaf", _cells("first", first, 1, top=CELL + 1))
    right = _panel("second leaf, and the grid", _cells("second", second, q), _cells("grid", product, q))
    panels = [
        f'<div class="pair">{left}{right}</div>',
        _panel("the grid line after line: the row", _cells("row", product, q * q, 16)),
    ]
    groups = [
        _group(f"{name} leaf", [(f"number {i + 1}", value, -1, 1, 0.1) for i, value in enumerate(values)])
        for name, values in (("First", first), ("Second", second))
    ]
    return Motion("leaves", panels, groups)


def routing(leaves: Tensor, weights: Sequence[float]) -> Motion:
    """The same leaves mixed by TensorPoly-I and by TensorPoly-II: a row of each on its grid, and its rank.

    Args:
        leaves: (2, 2, q), two orders and two experts.
        weights: of the first expert, which leaves the rest to the second: in TensorPoly-I, and in the two
            orders of TensorPoly-II.
    """
    shares = torch.tensor([[w, 1 - w] for w in weights])
    one = torch.einsum("k,kp->p", shares[0], mtp.tensor_product(leaves))
    two = mtp.tensor_product(torch.einsum("nk,nkq->nq", shares[1:], leaves))
    q = leaves.shape[-1]
    panels = []
    for part, row, name in (
        ("one", one, "TensorPoly-I: a mixture of products"),
        ("two", two, "TensorPoly-II: a product of mixtures"),
    ):
        rank = f"rank {torch.linalg.matrix_rank(row.view(q, q))}"
        words = f'<p class="title" data-words="{part}" aria-live="polite">{rank}</p>'
        panels.append(_panel(name, _cells(part, row.tolist(), q), words))
    labels = [["product 1"], ["leaf 1, order 1", "leaf 1, order 2"]]
    values = iter(weights)
    groups = [
        _group(f"Weights of {name}", [(label, next(values), 0, 1, 0.1) for label in own])
        for name, own in zip(("TensorPoly-I", "TensorPoly-II"), labels, strict=True)
    ]
    return Motion("routing", panels, groups, leaves=leaves.tolist())


def film(frames: dict[int, Tensor], truth: Tensor, tasks: Sequence[str], skills: Sequence[str]) -> Motion:
    """Routing weights of a layer while they are learned, beside what the tasks truly share.

    Args:
        frames: {step: (tasks, experts)}, weights from 0 to 1.
        truth: (tasks, skills), 1 where a task has a skill.
        tasks: their names.
        skills: their names.
    """
    shown = {step: [[round(w, 2) for w in row] for row in frame.tolist()] for step, frame in frames.items()}
    last = [w for row in shown[max(shown)] for w in row]
    peak = max(w for frame in shown.values() for row in frame for w in row)
    panels = [
        _panel(
            f'routing at <span data-words="step">step {max(shown)}</span>',
            _cells("weights", last, frames[max(frames)].shape[1], 16, rows=tasks, top=70, peak=peak),
        ),
        _panel(
            "true skills", _cells("truth", truth.flatten().tolist(), len(skills), 16, columns=skills, top=70)
        ),
    ]
    slider = ("step", len(frames) - 1, 0, len(frames) - 1, 1)
    controls = ['<button type="button">Play</button>', _group("The film", [slider])]
    return Motion("film", panels, controls, peak=peak, steps=[*shown], frames=[*shown.values()])


def _cells(part, values, width, size=CELL, rows=(), columns=(), top=0, peak=1.0):
    """Squares, a number each, in lines of a width: blue above zero, orange below, full at the peak."""
    left, lines, drawn = 6.5 * max(map(len, rows), default=0), -(-len(values) // width), []
    for i, name in enumerate(rows):
        place = f'x="{left - 4:g}" y="{top + (i + 0.75) * size:g}" text-anchor="end"'
        drawn.append(f"<text {place}>{html.escape(name)}</text>")
    for i, name in enumerate(columns):
        place = f'transform="translate({left + (i + 0.75) * size:g} {top - 4}) rotate(-90)"'
        drawn.append(f"<text {place}>{html.escape(name)}</text>")
    for i, value in enumerate(values):
        place = (
            f'x="{left + i % width * size:g}" y="{top + i // width * size:g}" width="{size}" height="{size}"'
        )
        kind, opacity = "minus" if value < 0 else "plus", min(1, abs(value) / peak)
        drawn.append(f'<rect class="{kind}" data-value="{value:.6g}" fill-opacity="{opacity:.3g}" {place}/>')
    wide, high = left + width * size + 1, top + lines * size + 1
    box = f'width="{wide:g}" height="{high:g}" viewBox="0 0 {wide:g} {high:g}"'
    label = f"{part}: {lines} by {width} numbers"
    return f'<svg role="img" aria-label="{label}" data-part="{part}" {box}>{"".join(drawn)}</svg>'


def _panel(title, *parts):
    return f'<div class="panel"><p class="title">{title}</p>{"".join(parts)}</div>'


def _group(title, sliders):
    """(label, value, least, most, step) of each slider."""
    lines = "".join(
        f'<label><span>{label}</span><input type="range" min="{least}" max="{most}" step="{step}" '
        f'value="{value}"><output></output></label>'
        for label, value, least, most, step in sliders
    )
    return f'<fieldset class="group"><legend class="title">{title}</legend>{lines}</fieldset>'
