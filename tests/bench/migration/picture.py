"""The client's gap as a picture: the time since the line before, over time, of one migration by plain libvirt and one by Hostler. SVG by hand.

A guest sends a line every 10 ms; the peak is the outage that its client sees. What lies between two columns of the picture is not averaged: each
column is as high as its largest gap.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BETWEEN, RIGHT = 760, 150, 56, 34, 52, 16
COLUMN_PX = 2
COLOURS = ("#7a7a7a", "#1c6fb5")

Gaps = Sequence[tuple[float, float]]
"""(seconds since the order to migrate, milliseconds since the line before)."""


def columns(gaps: Gaps, begin_s: float, end_s: float, width: int = (WIDTH - LEFT - RIGHT) // COLUMN_PX) -> list[float]:
    """The largest gap that ended in each column; 0: none did."""
    found = [0.0] * width
    for at_s, gap_ms in gaps:
        if begin_s <= at_s < end_s:
            place = int((at_s - begin_s) / (end_s - begin_s) * width)
            found[place] = max(found[place], gap_ms)
    return found


def svg(title: str, series: Sequence[tuple[str, Gaps]]) -> str:
    """One panel per series, with the same axes."""
    at = [at_s for _, gaps in series for at_s, _ in gaps]
    begin_s, end_s = min(at, default=0.0), max(at, default=1.0) + 0.001
    top_ms = _round_up(max((gap_ms for _, gaps in series for _, gap_ms in gaps), default=1.0))
    height = TOP + len(series) * (HEIGHT + BETWEEN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#333">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, gaps) in enumerate(series):
        parts += _panel(TOP + number * (HEIGHT + BETWEEN), name, gaps, begin_s, end_s, top_ms, COLOURS[number % len(COLOURS)])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(y: int, name: str, gaps: Gaps, begin_s: float, end_s: float, top_ms: float, colour: str) -> list[str]:
    floor, most = y + 16 + HEIGHT, max((gap_ms for _, gap_ms in gaps), default=0.0)
    parts = [f'<text x="{LEFT}" y="{y + 10}">{escape(name)}: at most {most:.0f} ms without a line</text>']
    for share in (0.0, 0.5, 1.0):
        at = floor - share * HEIGHT
        parts.append(f'<path d="M{LEFT} {at:.0f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.0f}" text-anchor="end">{share * top_ms:.0f} ms</text>')
    strokes = "".join(
        f"M{LEFT + COLUMN_PX * place} {floor}V{floor - gap_ms / top_ms * HEIGHT:.1f}"
        for place, gap_ms in enumerate(columns(gaps, begin_s, end_s))
        if gap_ms > 0
    )
    parts.append(f'<path d="{strokes}" stroke="{colour}" stroke-width="{COLUMN_PX}" fill="none"/>')
    for second in range(int(begin_s), int(end_s) + 1):
        x = LEFT + (second - begin_s) / (end_s - begin_s) * (WIDTH - LEFT - RIGHT)
        if x >= LEFT:
            parts.append(f'<text x="{x:.0f}" y="{floor + 15}" text-anchor="middle">{second} s</text>')
    return parts


def _round_up(value: float) -> float:
    step = 50.0 if value <= 500 else 250.0
    return max(step, -(-value // step) * step)
