"""Effects of an outcome, times of retries, and conditions for an alert: from the code that decides them."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from typing import get_args

from docs.blocks.common import MEANINGS, table
from inbox.config.model import Answered, Retry
from inbox.config.routing import ADDED
from relay.delivery import gates, outcome
from relay.delivery.alerts import SENTENCES
from relay.delivery.outcome import HEALTH, RULES
from relay.delivery.policy import Schedule
from relay.http import answer
from relay.http.answer import class_of_status

_EVERY_STATUS = range(200, 600)


def outcome_classes() -> str:
    """Each class of failure: which answers it is, what follows, and what its endpoint's breaker makes of it."""
    source = inspect.getsource(outcome)
    listed = source[source.index("ErrorClass = Literal[") :].partition("\n]")[0]
    return table(
        ("error class", "meaning", "then", "breaker", "can be overruled"),
        (
            (
                f"`{name}`",
                meaning,
                MEANINGS["rules"][RULES[name]],
                "counts against it" if name in HEALTH else "",
                "yes" if name in get_args(Answered) else "",
            )
            for name, meaning in re.findall(r'"(\w+)",  # (.+)', listed)
        ),
    )


def statuses() -> str:
    """Every status that has a class of its own, and each family."""
    special = sorted(answer.BY_STATUS)
    families = [(f"other {family}xx", f"`{name}`") for family, name in answer.FAMILIES.items()]
    rows = [("2xx", "success"), *((str(status), f"`{class_of_status(status)}`") for status in special), *families]
    return table(("status", "class"), rows)


def forward_headers() -> str:
    """Each header that a forwarded webhook gets."""
    return table(("header", "value"), ((f"`{name}`", value) for name, value in ADDED.items()))


def retry_schedule() -> str:
    """The default schedule, without jitter: when each attempt is made."""
    schedule = Schedule(Retry(), jitter=0)
    rows, elapsed, attempt = [("1", "at once", "")], timedelta(0), 1
    while (delay := schedule.delay_after(attempt)) is not None:
        elapsed, attempt = elapsed + delay, attempt + 1
        rows.append((str(attempt), f"{_words(delay)} after the one before", _words(elapsed)))
    return table(("attempt", "when", "after the first"), rows)


def alert_kinds() -> str:
    """Tabulate the conditions for an alert, in the alert's own words."""
    blank = re.compile(r"\{(\w+)\}")
    return table(
        ("kind", "when it begins", "when it has recovered"),
        (
            (f"`{kind}`", blank.sub(r"*\1*", began), blank.sub(r"*\1*", ended))
            for kind, (began, ended) in SENTENCES.items()
        ),
    )


def breaker_states() -> str:
    """The table that stands in `relay.delivery.gates`."""
    return "\n".join(line for line in (gates.__doc__ or "").splitlines() if line.startswith("|"))


def _words(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
