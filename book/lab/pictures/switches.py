"""A chart whose lines a reader switches on and off, by check boxes and style alone: no script, no network."""

import html

import pandas

from .results import COLORS, dashed, family

WIDTH, HEIGHT, LEFT, BOTTOM = 560, 300, 44, 40  # pixels of the drawing; of the space for labels
DASHES = "5 3"

STYLE = """
.switches { color-scheme: light; background: white; color: #222; border: 1px solid #ddd; border-radius: 6px;
  padding: 0.8rem; font-size: 0.85rem; display: flex; flex-wrap: wrap; gap: 0.6rem 1.6rem; }
.switches svg.chart { flex: 1 1 20rem; max-width: 100%; height: auto; }
.switches text { font-size: 12px; fill: #222; }
.switches fieldset { margin: 0; padding: 0; border: none; }
.switches legend { font-size: inherit; font-weight: 600; padding: 0; }
.switches label { display: flex; gap: 0.5rem; align-items: center; margin: 0; min-height: 1.6rem; }
"""


class Switches:
    """The chart, shown as the output of a cell.

    Args:
        table: rows by (contender, x), with mean, low and high from 0 to 100.
        xlabel: what x is.
        ylabel: what is shown.
        on: the contenders that are switched on at first.
        name: id of the chart on its page.
    """

    def __init__(self, table: pandas.DataFrame, xlabel: str, ylabel: str, on: list[str], name: str):
        self.table, self.xlabel, self.ylabel, self.on, self.name = table, xlabel, ylabel, on, name

    def _repr_html_(self) -> str:
        lines, boxes, rules = [], [], []
        for i, (contender, own) in enumerate(self.table.groupby(level=0, sort=False)):
            look = f'stroke="{COLORS[family(contender)]}" stroke-width="2" fill="none"'
            look += "" if not dashed(contender) else f' stroke-dasharray="{DASHES}"'
            lines.append(f'<g data-line="{i}">{self._band(own)}<polyline {look} {self._points(own)}/></g>')
            swatch = f'<svg width="28" height="10" aria-hidden="true"><path d="M0 5H28" {look}/></svg>'
            checked = "checked" if contender in self.on else ""
            box = f'<input type="checkbox" id="{self.name}-{i}" {checked}>'
            boxes.append(f"<label>{box}{swatch}<span>{html.escape(contender)}</span></label>")
            off = f"#{self.name}:has(#{self.name}-{i}:not(:checked)) [data-line='{i}']"
            rules.append(f"{off} {{ display: none; }}")
        label = html.escape(
            f"{self.ylabel} against {self.xlabel}, a line for each contender that is switched on"
        )
        return f"""<div class="switches" id="{self.name}"><style>{STYLE}{" ".join(rules)}</style>
<svg class="chart" role="img" aria-label="{label}" width="{WIDTH}" viewBox="0 0 {WIDTH} {HEIGHT}">
{self._axes()}{"".join(lines)}</svg>
<fieldset><legend>Contenders</legend>{"".join(boxes)}</fieldset></div>"""

    def _x(self, value):
        return LEFT + (WIDTH - LEFT - 12) * value / max(self.table.index.get_level_values(1))

    def _y(self, value):
        return 8 + (HEIGHT - BOTTOM - 8) * (1 - value / 100)

    def _points(self, own):
        pairs = zip(own.index.get_level_values(1), own["mean"], strict=True)
        return 'points="' + " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in pairs) + '"'

    def _band(self, own):
        steps = own.index.get_level_values(1)
        ends = [*zip(steps, own["low"], strict=True), *zip(steps[::-1], own["high"][::-1], strict=True)]
        points = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in ends)
        return f'<polygon points="{points}" fill="{COLORS[family(own.index[0][0])]}" fill-opacity="0.13"/>'

    def _axes(self):
        drawn = []
        for value in range(0, 101, 20):
            y = self._y(value)
            drawn.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 12}" stroke="#ddd"/>')
            drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
        for value in sorted(set(self.table.index.get_level_values(1))):
            place = f'x="{self._x(value):.1f}" y="{HEIGHT - BOTTOM + 16}"'
            drawn.append(f'<text {place} text-anchor="middle">{value}</text>')
        middle = f'x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}"'
        drawn.append(f'<text {middle} text-anchor="middle">{html.escape(self.xlabel)}</text>')
        side = f'transform="translate(12 {(HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)"'
        drawn.append(f'<text {side} text-anchor="middle">{html.escape(self.ylabel)}</text>')
        return "".join(drawn)
