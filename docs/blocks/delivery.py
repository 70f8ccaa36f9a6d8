"""Consequences of outcomes, times of retries and kinds of alerts, from the code that decides them."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from typing import get_args

from docs.blocks.common import MEANINGS, format_table
from inbox.config.model import Answered, Retry
from inbox.config.routing import ADDED
from relay.delivery import gates, outcome
from relay.delivery.alerts import SENTENCES
from relay.delivery.outcome import HEALTH, RULES
from relay.delivery.policy import Schedule


def list_outcome_classes() -> str:
    """Tabulate the classes of failures with their consequences."""
    source = inspect.getsource(outcome)
    listed = source[source.index("ErrorClass = Literal[") :].partition("\n]")[0]
    return format_table(
        ("error class", "meaning", "then", "counts for the breaker", "in `outcomes`"),
        (
            (
                f"`{name}`",
                meaning,
                MEANINGS["rules"][RULES[name]],
                "yes" if name in HEALTH else "",
                "yes" if name in get_args(Answered) else "",
            )
            for name, meaning in re.findall(r'"(\w+)",  # (.+)', listed)
        ),
    )


def list_forward_headers() -> str:
    """Tabulate the headers of a forwarded webhook."""
    return format_table(("header", "value"), ((f"`{name}`", value) for name, value in ADDED.items()))


def list_attempts() -> str:
    """Tabulate the default schedule, without jitter."""
    schedule = Schedule(Retry(), jitter=0)
    rows, elapsed, attempt = [("1", "", "")], timedelta(0), 1
    while (delay := schedule.delay_after(attempt)) is not None:
        elapsed, attempt = elapsed + delay, attempt + 1
        rows.append((str(attempt), _format_span(delay), _format_span(elapsed)))
    return format_table(("attempt", "after the one before", "after the first"), rows)


def list_alert_kinds() -> str:
    """Tabulate the kinds of alerts with the texts that they begin with."""
    blank = re.compile(r"\{(\w+)\}")
    return format_table(
        ("kind", "text"),
        ((f"`{kind}`", blank.sub(r"*\1*", began)) for kind, (began, _) in SENTENCES.items()),
    )


def list_breaker_states() -> str:
    """Return the table in the docstring of `relay.delivery.gates`."""
    return "\n".join(line for line in (gates.__doc__ or "").splitlines() if line.startswith("|"))


def _format_span(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
