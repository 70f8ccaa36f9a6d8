"""HTML of screens: Jinja2 with escaping, and the filters that put values into their form. No template reads anything."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inbox.cli import wording
from inbox.events.timestamps import as_time, rfc3339
from inbox.observe.visible import visible, visible_line
from relay.web import charts
from relay.web import query as queries
from relay.web.encoding import encodable_text
from relay.web.keys import KEYS
from relay.web.screen import MOST_COUNTED, Screen
from relay.web.static_files import static_url

TYPE = "text/html; charset=utf-8"


class Renderer:
    """Renders templates of `relay/web/templates`."""

    def __init__(self, menu: tuple[tuple[str, str], ...]) -> None:
        """Prepare it; `menu` has path and title of each entry."""
        self._environment = _environment(menu)

    def render(self, template: str, *, now: datetime, **values: Any) -> str:  # noqa: ANN401  # whatever it shows
        """Render a template. `now` is what times are relative to."""
        return encodable_text(self._environment.get_template(template).render(now=now, **values))

    def render_screen(self, screen: Screen, *, now: datetime, **values: Any) -> str:  # noqa: ANN401  # whatever it shows
        """Render a screen. `values` go before its own; without `live` it does not refresh itself."""
        given = {"title": screen.title, "here": screen.path, "screen": screen, "live": None, **screen.values, **values}
        return self.render(screen.template, now=now, **given)


@cache  # all pages of a process share the compiled templates
def _environment(menu: tuple[tuple[str, str], ...]) -> Environment:
    made = Environment(
        loader=PackageLoader("relay.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(
        menu=menu,
        keys=KEYS,
        url=queries.url,
        static=static_url,
        with_given=_with_given,
        MOST_COUNTED=MOST_COUNTED,
        line_chart=charts.line_chart,
        sparkline=charts.sparkline,
        Series=charts.Series,
        timedelta=timedelta,
    )
    made.filters.update(
        visible=_visible,
        sentence=_sentence,
        brief=_brief,
        visible_lines=_visible_lines,
        shown_state=wording.shown_state,
        segment=queries.segment,
        time=_time,
        number=_number,
        counted=wording.counted,
        count_up_to=_count_up_to,
        pretty=_pretty,
        one_line=_one_line,
        lasting=wording.lasting,
        byte_count=wording.byte_count,
    )
    made.tests["harmless"] = _is_harmless
    return made


def _is_harmless(text: str) -> bool:
    """Tell whether a text does in a terminal what it shows: pasted, a control character in it would be a key that is pressed."""
    return visible_line(text) == text


def _visible(value: object) -> str:
    """Make a value from outside harmless to the eye: invisible and bidirectional characters become escapes."""
    return "" if value is None else visible(str(value))


def _sentence(value: object) -> str:
    """Make a sentence of ours with values in it harmless, as `visible` does; backslashes stay single."""
    return "" if value is None else visible_line(str(value))


def _visible_lines(value: object) -> str:
    """Make a text from outside harmless to the eye, and keep its lines."""
    return "\n".join(visible_line(line) for line in str(value).split("\n"))


_BRIEF = 300


def _brief(value: object) -> str:
    """Make the beginning of a value from outside harmless to the eye, for a cell of a table."""
    text = "" if value is None else str(value)
    return visible(text) if len(text) <= _BRIEF else f"{visible(text[:_BRIEF])}…"


def _with_given(names: Iterable[str], given: str | None) -> list[str]:
    """List names to choose from. The given one is among them, so that a form keeps it."""
    known = list(names)
    return known if given is None or given in known else [*known, given]


def _time(value: datetime | str | None, now: datetime) -> Markup:
    """Write a time as people say it; the exact one is in the title."""
    if value is None:
        return Markup("")
    moment = as_time(value)
    return Markup('<time datetime="{exact}" title="{exact}">{said}</time>').format(
        exact=rfc3339(moment), said=wording.relative(moment, now)
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _count_up_to(value: int, most: int = MOST_COUNTED) -> str:
    """Write a count that ends at `most`."""
    return f"{most:,}+" if value > most else f"{value:,}"


def _pretty(value: object) -> str:
    """Write a JSON value on several lines."""
    return json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False, default=str)


def _one_line(value: object) -> str:
    """Write a JSON value on one line; one that is absent is called so."""
    return "nothing" if value is None else json.dumps(msgspec.to_builtins(value), ensure_ascii=False, default=str)
