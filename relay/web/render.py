"""HTML of screens: Jinja2 with escaping, filters that format values, and charts. Templates never read the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from falcon.asgi import Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inbox.clock import Clock
from inbox.config.model import Config
from inbox.events.timestamps import as_time, rfc3339
from inbox.observe.visible import visible, visible_line
from relay import words
from relay.web import query as queries
from relay.web.query import encodable_text
from relay.web.reading import MOST_COUNTED, Screen

Series = tuple[str, str, Sequence[int]]
"""A line of a chart: its name, the class of its colour (in, out or bad), and consecutive counts."""


def chart(key: str, title: str, series: Sequence[Series], labels: Sequence[str] = (), each: str = "minute") -> Markup:
    """Draw lines over time: with labels, a chart with a grid; without, a chart small enough for a table cell.

    Args:
        key: prefix of the element ids; unique in the page.
        title: title of the chart.
        series: lines, the last one on top.
        labels: texts below the plot, from left to right.
        each: the unit of time that each count covers.
    """
    classes, width, height, left, upper, lower = (
        ("chart", 720, 160, 44, 8, 142) if labels else ("chart spark", 120, 28, 1, 2, 26)
    )
    top, step = scale(max((value for _, _, values in series for value in values), default=0))

    def scale_to(share: float, start: int, end: int) -> str:
        return f"{start + (end - start) * share:.1f}".removesuffix(".0")

    def places(number: int) -> list[str]:
        return [
            scale_to(n / (number - 1) if number > 1 else 1.0, left, width - (4 if labels else 1)) for n in range(number)
        ]

    inside = [
        Markup(
            '<line class="grid" x1="{}" x2="716" y1="{y}" y2="{y}"/><text x="38" y="{y}" dy="4" text-anchor="end">{}</text>'
        ).format(left, _short(level), y=scale_to(level / top, lower, upper))
        for level in range(0, top + 1 if labels else 0, step)
    ]
    for number, (x, label) in enumerate(zip(places(len(labels)), labels, strict=True), 1):
        anchor = "end" if number == len(labels) else "start" if number == 1 else "middle"
        inside.append(
            Markup('<text class="below" x="{}" y="156" text-anchor="{}">{}</text>').format(
                x, anchor, visible_line(label)
            )
        )
    for _, colour, values in series:
        points = zip(places(len(values)), values, strict=True)
        inside.append(
            Markup('<polyline class="line {}" points="{}"/>').format(
                colour if any(values) else "flat",  # a line of zeros is not shown in red
                " ".join(f"{x},{scale_to(value / top, lower, upper)}" for x, value in points),
            )
        )
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-labelledby="{key}-title {key}-about"'
        ' xmlns="http://www.w3.org/2000/svg"><title id="{key}-title">{}</title><desc id="{key}-about">{}</desc>{}</svg>'
    ).format(
        classes,
        width,
        height,
        visible_line(title),
        visible_line(summary(series, each)),
        Markup("").join(inside),
        key=key,
    )


_LINES = 4
"""Maximum number of horizontal grid lines."""


def scale(largest: int) -> tuple[int, int]:
    """Return the maximum of a chart's axis and the step of its grid, as round whole numbers."""
    if largest < _LINES:
        return max(largest, 1), 1
    magnitude = 10 ** (len(str(-(-largest // _LINES))) - 1)
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude * _LINES >= largest)
    return -(-largest // step) * step, step


def summary(series: Sequence[Series], step: str = "minute") -> str:
    """Describe the lines in words: the sum, the maximum and the last value of each."""
    said = (
        f"{name}: {sum(values):,} in all, at most {max(values):,} in a {step}, {values[-1]:,} in the last {step}"
        for name, _, values in series
        if values
    )
    return "; ".join(said) or "no figures"


def _short(value: int) -> str:
    """Abbreviate a number for the grid, such as `20k`."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return str(value)


STATIC_FOLDER = Path(__file__).parent / "static"
STATIC: Mapping[str, str] = {
    file.name: f"/static/{file.name}?v={hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    for file in STATIC_FOLDER.iterdir()
}
"""The URL of each static file. It changes with the content, so that browsers can cache the file forever."""


class Renderer:
    """Renders templates of `relay/web/templates`."""

    def __init__(self, screens: Iterable[Screen], clock: Clock, config: Config) -> None:
        """Prepare the templates; the menu has the screens with a key."""
        self._menu, self._clock, self._config = tuple(each for each in screens if each.key), clock, config

    def show(self, resp: Response, template: str, **values: Any) -> None:  # noqa: ANN401  # the template's values
        """Respond with a template. Its times are relative to now."""
        given = {"now": self._clock.now(), "menu": self._menu, "config": self._config, **values}
        resp.content_type = "text/html; charset=utf-8"
        resp.text = encodable_text(_environment().get_template(template).render(given))

    def show_screen(self, resp: Response, screen: Screen, **values: Any) -> None:  # noqa: ANN401  # likewise
        """Respond with a screen. `values` override its own; without `live` the page does not refresh itself."""
        fixed = {
            "title": screen.title,
            "here": screen.path,
            "screen": screen,
            "problem": None,
            "live": False,
            "version": None,
        }
        self.show(resp, f"{screen.name}.html", **{**fixed, **screen.values, **values})


@cache  # all pages of a process share the compiled templates
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("relay.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        url=queries.url,
        static=STATIC.__getitem__,
        with_given=_with_given,
        MOST_COUNTED=MOST_COUNTED,
        chart=chart,
        timedelta=timedelta,
    )
    made.filters.update(
        visible=_visible,
        sentence=_sentence,
        brief=_brief,
        visible_lines=_visible_lines,
        shown_state=words.describe_state,
        time=_time,
        number=_number,
        counted=words.format_count,
        plural=words.pluralize,
        count_up_to=_count_up_to,
        pretty=_pretty,
        one_line=_one_line,
        lasting=words.format_duration,
        byte_count=words.format_bytes,
    )
    made.tests["harmless"] = _is_harmless
    return made


def _is_harmless(text: str) -> bool:
    """Return whether a text is safe to paste into a terminal, where a control character would act as a key."""
    return visible_line(text) == text


def _visible(value: object) -> str:
    """Escape the invisible and bidirectional characters in a value from outside."""
    return "" if value is None else visible(str(value))


def _sentence(value: object) -> str:
    """Escape one of our sentences, which may contain untrusted values, without doubling backslashes."""
    return "" if value is None else visible_line(str(value))


def _visible_lines(value: object) -> str:
    """Escape a text from outside as `_visible` does, but keep its line breaks."""
    return "\n".join(visible_line(line) for line in str(value).split("\n"))


_BRIEF = 300


def _brief(value: object) -> str:
    """Escape the beginning of a value from outside, for a table cell."""
    text = "" if value is None else str(value)
    return visible(text) if len(text) <= _BRIEF else f"{visible(text[:_BRIEF])}…"


def _with_given(names: Iterable[str], given: str | None) -> list[str]:
    """List the names to choose from, including the given one, so that a form keeps it."""
    known = list(names)
    return known if given is None or given in known else [*known, given]


def _time(value: datetime | str | None, now: datetime) -> Markup:
    """Format a time relative to now and as a clock time in UTC, with the exact time in the title."""
    if value is None:
        return Markup("")
    moment = as_time(value)
    said, clock = words.format_relative(moment, now), words.format_time_of_day(moment, now)
    if said.startswith(f"{moment:%Y-}"):  # already a date
        clock = f"{moment:%H:%M:%S}Z"
    return Markup('<time datetime="{exact}" title="{exact}"><span>{said}</span> <small>{clock}</small></time>').format(
        exact=rfc3339(moment), said=said, clock=clock
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _count_up_to(value: int, most: int = MOST_COUNTED) -> str:
    """Format a count that stops at `most`."""
    return f"{most:,}+" if value > most else f"{value:,}"


def _pretty(value: object) -> str:
    """Format a JSON value on several lines."""
    return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False, default=str)


def _one_line(value: object) -> str:
    """Format a JSON value on one line, and None as `nothing`."""
    return "nothing" if value is None else json.dumps(msgspec.to_builtins(value), ensure_ascii=False, default=str)
