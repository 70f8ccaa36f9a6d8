"""`/dead`: dead letters by route, cause and error, with an act on each group."""

from __future__ import annotations

import msgspec

from relay.delivery.facts import CAUSES
from relay.store.dead_groups import MOST_GROUPED, DeadGroup, dead_groups
from relay.web.query import GivenTime, Limit, Text
from relay.web.screen import Reading, Screen


class DeadQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on dead letters."""

    route: Text | None = None
    cause: Text | None = None
    since: GivenTime | None = None
    """Died at or after this time."""
    limit: Limit = 50
    """Groups."""


class DeadPage(msgspec.Struct, frozen=True):
    """Groups of dead letters, the largest first."""

    groups: tuple[DeadGroup, ...]
    grouped: int
    """Dead letters that were looked at, the newest events first; at most 5,000."""
    is_whole: bool
    """False: there are older dead letters, or smaller groups."""
    routes: tuple[str, ...]
    """Routes of the configuration."""
    most_grouped: int = MOST_GROUPED


def read(reading: Reading, query: DeadQuery) -> DeadPage:
    """Read the groups."""
    since = query.since.moment if query.since else None
    with reading.database.read() as transaction:
        found = dead_groups(transaction, route=query.route, cause=query.cause, since=since, limit=query.limit)
    return DeadPage(tuple(found.groups), found.grouped, found.is_whole, tuple(sorted(reading.config.routes)))


SCREEN = Screen(
    name="dead",
    path="/dead",
    title="Dead letters",
    query=DeadQuery,
    page=DeadPage,
    read=read,
    template="dead.html",
    values={"causes": CAUSES},
    is_live=False,
)
