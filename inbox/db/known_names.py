"""Existence checks for names that a filter gives and the configuration lacks: rows of a removed route or source stay.

Each reads one entry of an index, or a bounded number of rows: a mistyped name must not cost a scan of the history.
"""

from __future__ import annotations

from sqlalchemy import Engine, text

from inbox.db.engine import reading
from inbox.events.states import OPEN_STATES

NEWEST = 10_000
"""The number of newest rows that are searched where no index has the name."""

_ROUTE_PLACES = (
    *(f"open_delivery WHERE state = '{state}' AND route = :name" for state in OPEN_STATES),  # each by its partial index
    "lane WHERE route = :name",
    "gate WHERE kind = 'route' AND name = :name",
    f"(SELECT route FROM delivery_log ORDER BY id DESC LIMIT {NEWEST}) newest WHERE route = :name",
)
_SOURCE_PLACES = ("inbox WHERE source = :name",)
_REJECTED_SOURCE_PLACES = (
    f"(SELECT source FROM rejected_request ORDER BY id DESC LIMIT {NEWEST}) newest WHERE source = :name",
)


def has_route(engine: Engine, name: str) -> bool:
    """Return whether there is a delivery of a route: an open one, a lane's last one, or one among the newest facts."""
    return _has(engine, _ROUTE_PLACES, name)


def has_source(engine: Engine, name: str) -> bool:
    """Return whether there is an event of a source."""
    return _has(engine, _SOURCE_PLACES, name)


def has_rejected_source(engine: Engine, name: str) -> bool:
    """Return whether one of the newest rejected requests named a source; it may be any word that stood in a URL."""
    return _has(engine, _REJECTED_SOURCE_PLACES, name)


def _has(engine: Engine, places: tuple[str, ...], name: str) -> bool:
    with engine.connect() as connection, reading(connection).begin():
        for place in places:
            if connection.execute(text(f"SELECT 1 FROM {place} LIMIT 1"), {"name": name}).first():
                return True
    return False
