"""Charts as inline SVG: lines over time, and small ones for a table's cell. Pure.

They carry no style: classes of `style.css` colour them in light and dark. Each has a title and a description; the figures
stand in a table of the page beside it, for those who don't see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from inbox.observe.visible import visible_line

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 4, 8, 18
"""Space around the plot for its labels, in units of the view box."""
_LINES = 4
"""Most horizontal lines of the grid."""


class Series(msgspec.Struct, frozen=True):
    """One line of a chart."""

    name: str
    kind: str
    """Class of its colour: in, out or bad."""
    values: tuple[float, ...]
    """Figures of consecutive times. Those that are negative or no number count as 0."""


class _Frame(msgspec.Struct, frozen=True):
    """A kind of chart: its classes, and its view box, which the page scales."""

    classes: str
    width: int
    height: int


_CHART = _Frame("chart", 720, 160)
_SPARK = _Frame("chart spark", 120, 28)


def line_chart(key: str, title: str, series: Sequence[Series], labels: Sequence[str]) -> Markup:
    """Draw lines over time, with a grid and labels.

    Args:
        key: prefix of its ids; unique in the page.
        title: name of the chart.
        series: lines, the last one on top.
        labels: texts below the plot, from its left end to its right end.
    """
    top, step = scale(max((value for each in series for value in _sound(each.values)), default=0))
    plot = _Plot(_LEFT, _TOP, _CHART.width - _LEFT - _RIGHT, _CHART.height - _TOP - _BOTTOM, top)
    inside = [_grid(plot, level) for level in _levels(top, step)]
    inside += [
        Markup('<text class="below" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            _number(plot.x(place)), _CHART.height - 4, _anchor(place), visible_line(label)
        )
        for place, label in zip(_places(len(labels)), labels, strict=True)
    ]
    inside += [_line(plot, each) for each in series]
    return _svg(key, title, series, Markup("").join(inside), _CHART)


def sparkline(key: str, title: str, series: Sequence[Series]) -> Markup:
    """Draw lines over time without any label, for a cell of a table. Arguments are as those of `line_chart`."""
    top = max((value for each in series for value in _sound(each.values)), default=0) or 1
    plot = _Plot(1, 2, _SPARK.width - 2, _SPARK.height - 4, top)
    inside = Markup("").join(_line(plot, each) for each in series)
    return _svg(key, title, series, inside, _SPARK)


class _Plot(msgspec.Struct, frozen=True):
    """The area of the lines."""

    left: float
    upper: float
    width: float
    height: float
    top: float
    """Figure at its upper edge."""

    def x(self, place: float) -> float:
        """Return the position of a place from 0, the left end, to 1."""
        return self.left + self.width * place

    def y(self, value: float) -> float:
        return self.upper + self.height * (1 - min(value / self.top, 1))


def scale(largest: float) -> tuple[float, float]:
    """Return the figure at the top of a chart, and the step of its grid: whole numbers that people read easily."""
    if largest < _LINES:
        whole = max(math.ceil(largest), 1)
        return whole, 1
    if largest > _LARGEST:
        return largest, largest
    magnitude = 10 ** math.floor(math.log10(largest / _LINES))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude * _LINES >= largest)
    return math.ceil(largest / step) * step, step


_LARGEST = 1e15
"""Floats above it have no exact neighbours: nobody counts so much."""


def summary(series: Sequence[Series]) -> str:
    """Describe lines in words: the sum, the largest and the last figure of each."""
    said = []
    for each in series:
        values = _sound(each.values)
        if values:
            last = f"{values[-1]:,.6g} in the last one"
            said.append(f"{each.name}: {sum(values):,.6g} in all, at most {max(values):,.6g} a minute, {last}")
    return "; ".join(said) or "no figures"


def _svg(key: str, title: str, series: Sequence[Series], inside: Markup, frame: _Frame) -> Markup:
    return Markup(
        '<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-title {key}-about"'
        ' xmlns="http://www.w3.org/2000/svg"><title id="{key}-title">{title}</title>'
        '<desc id="{key}-about">{about}</desc>{inside}</svg>'
    ).format(
        kind=frame.classes,
        width=frame.width,
        height=frame.height,
        key=key,
        title=visible_line(title),
        about=visible_line(summary(series)),
        inside=inside,
    )


def _grid(plot: _Plot, level: float) -> Markup:
    y = _number(plot.y(level))
    return Markup(
        '<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        '<text x="{text}" y="{base}" text-anchor="end">{level}</text>'
    ).format(
        left=_number(plot.left),
        right=_number(plot.x(1)),
        y=y,
        text=_number(plot.left - 6),
        base=_number(min(plot.y(level) + 4, plot.upper + plot.height)),
        level=_short(level),
    )


def _levels(top: float, step: float) -> list[float]:
    return [step * number for number in range(round(top / step) + 1)]


def _line(plot: _Plot, series: Series) -> Markup:
    values = _sound(series.values)
    points = " ".join(
        f"{_number(plot.x(place))},{_number(plot.y(value))}"
        for place, value in zip(_places(len(values)), values, strict=True)
    )
    kind = series.kind if any(values) else "flat"  # a line of failures that lies at 0 is no alarm
    return Markup('<polyline class="line {}" points="{}"/>').format(kind, points)


def _places(number: int) -> list[float]:
    """Return the places of so many points, from 0 to 1."""
    return [1.0] if number == 1 else [n / (number - 1) for n in range(number)]


def _anchor(place: float) -> str:
    return "start" if place == 0 else "end" if place == 1 else "middle"


def _sound(values: Sequence[float]) -> list[float]:
    return [value if math.isfinite(value) and value > 0 else 0.0 for value in values]


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _short(value: float) -> str:
    """Write a figure of the grid in few characters, such as `20k`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:g}"
