"""Writes a relay's figures into `throughput_minute`: facts of its routes and their destinations, and events of sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from inbox.config.model import Route
from inbox.db.throughput import DESTINATION, ROUTE, Figure, add_up, figures_param
from relay.store.database import Database

_LOCK_WAIT_MS = 100
"""Longest wait for a row: other writers hold theirs for a moment, so a longer lock is a person's."""


def flush(database: Database, routes: Mapping[str, Route]) -> None:
    """Write the figures counted so far; `routes` says to which destination each route goes now."""
    with database.tally.taken() as figures:
        if figures:
            rows = figures_param([*figures, *_of_destinations(figures, routes)])
            with database.write() as transaction:
                transaction.limit_waits(_LOCK_WAIT_MS)
                transaction.execute(add_up(transaction.sql), figures=rows)


def _of_destinations(figures: Iterable[Figure], routes: Mapping[str, Route]) -> Iterator[Figure]:
    for figure in figures:
        if figure.kind == ROUTE and figure.name in routes:
            yield msgspec.structs.replace(figure, kind=DESTINATION, name=routes[figure.name].destination)
