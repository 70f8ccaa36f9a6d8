"""Filters of listings and selections: checks for unknown names, and conditions on rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from inbox.config.mistakes import nearest
from inbox.config.routing import chosen_routes
from inbox.db.dialect import is_storable
from inbox.db.listing import ListingName
from inbox.db.reads import NamedIn, Row, find_sender_ids, has
from inbox.errors import CAUSES as REJECTIONS
from inbox.events.states import COMMAND_KINDS, COMMAND_STATES, LISTED_STATES, OPEN, RETRYING, State
from relay.delivery.alerts import AlertKind
from relay.delivery.facts import CAUSES, KINDS

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config

Filtered = ListingName | Literal["deliveries", "arrivals", "facts"]
"""A listing, or a stream of new rows to follow."""

STATES = (*LISTED_STATES, RETRYING, OPEN)
"""Every value of the filter `state` of deliveries."""
ARRIVALS = ("arrived", "rejected")
_NAMES: Mapping[tuple[Filtered, str], Collection[str]] = {
    ("deliveries", "state"): STATES,
    ("dead", "cause"): CAUSES,
    ("commands", "state"): COMMAND_STATES,
    ("commands", "kind"): COMMAND_KINDS,
    ("rejected", "cause"): sorted(REJECTIONS),
    ("alerts", "kind"): get_args(AlertKind),
    ("arrivals", "kind"): ARRIVALS,
    ("arrivals", "cause"): sorted(REJECTIONS),
    ("facts", "kind"): KINDS,
    ("facts", "cause"): CAUSES,
}
"""The allowed values of filters with a closed set."""
_MOST_SIMILAR = 3
"""Number of senders' ids that a hint names."""
_SOURCES: Mapping[Filtered, tuple[NamedIn, ...]] = {
    "rejected": ("rejected_source",),
    "arrivals": ("source", "rejected_source"),
}


def list_unknown(
    listing: Filtered, given: Mapping[str, Any], config: Config, engine: Engine
) -> Iterator[tuple[str, str]]:
    """Yield each filter with a value unknown to configuration and database, and a message that suggests the nearest value."""
    known: dict[str, tuple[Collection[str], tuple[NamedIn, ...]]] = {
        "source": (config.sources, _SOURCES.get(listing, ("source",))),
        "route": (config.routes, ("route",)),
        "destination": (config.destinations, ()),
        "api": (config.apis, ()),
    }
    for name, value in given.items():
        if isinstance(value, str) and not is_storable(value):  # an argument that is not UTF-8
            yield name, f"{name} {value!r}: a database can't store such a character"
            return
        names, stored = known.get(name, (_NAMES.get((listing, name)), ()))
        if (
            value is not None
            and names is not None
            and value not in names
            and not any(has(engine, kind, value) for kind in stored)
        ):
            yield name, f"there is no {name} {value!r}; {nearest(value, names)}"


def suggest_sender_id(engine: Engine, given: str) -> str | None:
    """Return a hint about a sender's id that no event has; None if an event has it."""
    if has(engine, "sender_id", given):
        return None
    similar = find_sender_ids(engine, given, _MOST_SIMILAR)
    if similar:
        return f"the sender's id {given!r} is unknown; did you mean {' or '.join(map(repr, similar))}?"
    return (
        f"the sender's id {given!r} is unknown: write it whole; `inbox rejected` lists requests that were refused, and an"
        " erasure removes the id"
    )


def make_conditions(given: Mapping[str, Any], config: Config, now: datetime) -> dict[str, Any]:
    """Turn filters into conditions of `inbox.db.listing`: routes become names, and states become stored states."""
    wanted = {name: value for name, value in given.items() if name not in {"route", "destination"}}
    if "route" in given:
        wanted["routes"] = chosen_routes(config, given["route"], given.get("destination"))
    if given.get("state") == RETRYING:
        wanted |= {"state": State.READY.value, "retrying_at": now}
    return wanted


def admits(wanted: Mapping[str, Any], row: Row) -> bool:
    """Return whether a followed row meets the conditions. The cause, status and error of a fact are read from its detail."""
    detail = row.get("detail", {})
    calls = detail.get("calls") or [{}]
    had = {**row, "status": calls[-1].get("status"), "error": detail.get("error")} if detail else row
    causes = {detail.get("cause"), detail.get("error_class")} if "detail" in row else {row.get("cause")}
    for name, value in wanted.items():
        if value is None:
            continue
        if name == "routes":
            met = not value.isdisjoint(row.get("routes", (row.get("route"),)))
        elif name == "error":
            met = value.casefold() in str(had.get("error") or "").casefold()
        else:
            met = value in causes if name == "cause" else had.get(name) == value
        if not met:
            return False
    return True
