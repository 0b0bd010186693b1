"""The picture `bench.svg`: cost per task by the number of tasks, and by the caller's heap, as SVG."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.plan import size_text
from benchmarks.row import Point, Row

_WIDTH, _HEIGHT = 460, 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 44, 16, 46
_LABEL = 40  # from the middle of one to that of the next
_COLOURS = ("#1f6f8b", "#c0392b", "#8e6c1f", "#5b4b8a", "#2e7d32", "#777777")
_INK, _FAINT = "#222222", "#dddddd"


def draw(rows: Sequence[Row]) -> str:
    """One panel for each axis that the rows have points of; an empty picture where there are none."""
    points = [point for row in rows for point in row.points]
    axes = sorted({point.axis for point in points}, reverse=True)
    tools = list(dict.fromkeys(point.tool for point in points))
    colours = {tool: _COLOURS[i % len(_COLOURS)] for i, tool in enumerate(tools)}
    height = _HEIGHT + 24 + 18 * len(tools)
    box = f"0 0 {max(len(axes), 1) * _WIDTH} {height}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for i, axis in enumerate(axes):
        panel = _panel(axis, [point for point in points if point.axis == axis], colours)
        parts.append(f'<g transform="translate({i * _WIDTH} 0)">{panel}</g>')
    parts += [_legend(i, tool, colours[tool]) for i, tool in enumerate(tools)]
    return "\n".join([*parts, "</svg>\n"])


def _legend(i: int, tool: str, colour: str) -> str:
    y = _HEIGHT + 20 + 18 * i
    name = "fork floor" if tool == "fork" else tool
    return (
        f'<rect x="{_LEFT}" y="{y - 9}" width="18" height="4" fill="{colour}"/>'
        f'<text x="{_LEFT + 26}" y="{y - 3}" fill="{_INK}">{escape(name)}</text>'
    )


def _panel(axis: str, points: list[Point], colours: dict[str, str]) -> str:
    is_heap = axis.startswith("heap")
    xs = sorted({point.x for point in points})
    place = _Scale(xs, [point.ms for point in points], log_x=not is_heap)
    title = "cost by " + ("the caller's " if is_heap else "number of ") + axis
    parts = [_text(_LEFT, 20, title, weight="bold"), _text(_LEFT, 36, "ms per task, logarithmic", size=11)]
    for value in place.decades():
        y = place.y(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_FAINT}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    labelled = math.inf
    for x in reversed(xs):
        if labelled - place.x(x) < _LABEL:
            continue
        labelled = place.x(x)
        label = size_text(x) if is_heap and x else "empty" if is_heap else f"{x:,}"
        parts.append(_text(place.x(x), _HEIGHT - _BOTTOM + 18, label, anchor="middle", size=10))
    for tool, colour in colours.items():
        line = sorted((point.x, point.ms) for point in points if point.tool == tool)
        parts.append(_line([(place.x(x), place.y(ms)) for x, ms in line], colour))
    return "\n".join(parts)


class _Scale:
    """Where a pair of numbers goes in a panel."""

    def __init__(self, xs: list[float], ys: list[float], *, log_x: bool) -> None:
        self._log_x = log_x
        self._x = self._of(min(xs)), self._of(max(xs))
        self._y = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))

    def _of(self, x: float) -> float:
        return math.log10(x) if self._log_x else x

    def x(self, x: float) -> float:
        low, high = self._x
        inner = _WIDTH - _LEFT - _RIGHT - 60
        return _LEFT + 30 + inner * (self._of(x) - low) / ((high - low) or 1)

    def y(self, y: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (math.log10(y) - low) / ((high - low) or 1)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self._y[0], self._y[1] + 1)]


def _line(points: list[tuple[float, float]], colour: str) -> str:
    if not points:
        return ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{_INK}">{escape(text)}</text>'
    )
