"""Selections of operators: the conditions of a command, and the mistakes that one can have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import MAXYEAR, MINYEAR, datetime
from typing import Annotated, Literal

import msgspec

from inbox.config.mistakes import nearest
from inbox.config.model import Config, Route
from inbox.db.parameters import rows_param
from inbox.db.reads import Row
from inbox.events.commands import FLAGS
from inbox.events.timestamps import time_text
from relay.delivery.facts import CAUSES
from relay.store.database import Key

Act = Literal["replay", "cancel", "unblock", "retry"]
Which = Literal["dead", "ended or dead", "backfill", "not begun", "blocked", "due later"]
"""The kind of deliveries that a command is about."""

_CONDITIONS = "a route, seq, source, entity, destination, cause or time"

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Selection(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every condition that is given must hold. This is also what `relay_command.selection` holds, as JSON."""

    route: str | None = None
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    destination: str | None = None
    """All routes to it."""
    api: str | None = None
    """All routes that ask it."""
    cause: str | None = None
    """Of its death; for a retry: error class of the last failed attempt."""
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] | None = None
    """HTTP status of the last call's answer."""
    error: str | None = None
    """A part of the last error, in any case."""
    error_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the whole last error, letter by letter, as UTF-8 in hex."""
    event_type: str | None = None
    since: Moment | None = None
    """Died, or failed last, at or after this time; where others are selected: arrived at or after."""
    until: Moment | None = None
    """The same, before this time."""
    force: bool = False
    """Replay even where that overwrites the last delivered state with an older one."""

    backfill: bool = False
    """For a replay of one route: also ended deliveries, and events that match the route now and have never taken it."""
    everything: bool = False
    """Without any condition: every delivery that the command could change."""

    @property
    def is_empty(self) -> bool:
        """True when no condition is given."""
        return msgspec.structs.replace(self, **dict.fromkeys(FLAGS, False)) == Selection()

    @property
    def is_about_failures(self) -> bool:
        """True when a condition is about a failed attempt."""
        return (self.cause, self.status, self.error, self.error_sha256) != (None, None, None, None)

    @property
    def dead_only(self) -> bool:
        """For a replay: unless one event or entity is named, only dead letters are selected, and ended deliveries left alone."""
        return self.is_about_failures or (self.seq is None and self.entity_id is None)


def keys_of(rows: Iterable[Row]) -> list[Key]:
    """Seq and route of each."""
    return [(int(row["seq"]), str(row["route"])) for row in rows]


class Choice(msgspec.Struct, frozen=True):
    """An act and what it is about, under one configuration."""

    act: Act
    selection: Selection
    config: Config

    @property
    def mistake(self) -> str | None:
        """The reason why this selection is invalid; None when it is valid."""
        chosen = self.selection
        for name, moment in (("since", chosen.since), ("until", chosen.until)):
            if moment is not None and not MINYEAR < moment.year < MAXYEAR:
                return f"{name} the year {moment.year}? Name one between {MINYEAR + 1} and {MAXYEAR - 1}"
        if chosen.since is not None and chosen.until is not None and chosen.since >= chosen.until:
            return "nothing is since a time and until an earlier one: exchange the two"
        return self._unknown_name or self._missing or self._backfill_of_what

    @property
    def _unknown_name(self) -> str | None:
        chosen = self.selection
        known = (
            ("destination", chosen.destination, self.config.destinations),
            ("api", chosen.api, self.config.apis),
            ("cause", chosen.cause, CAUSES),
        )
        for kind, given, names in known:
            if given is not None and given not in names:
                return f"there is no {kind} {given!r}; {nearest(given, names)}"
        return None

    @property
    def _missing(self) -> str | None:
        chosen = self.selection
        if chosen.is_empty and not chosen.everything:
            return f"name what the {self.act} is about: {_CONDITIONS}, or everything (--all)"
        if self.act != "replay" and chosen.force:
            return "only a replay can be forced"
        return None

    @property
    def _backfill_of_what(self) -> str | None:
        chosen, routes = self.selection, self.config.routes
        if not chosen.backfill:
            return None
        if self.act != "replay":
            return "only a replay can be a backfill"
        if chosen.route not in routes:
            return f"a backfill of which route? Configured are: {', '.join(sorted(routes)) or 'none'}"
        if chosen.is_about_failures or (chosen.source, chosen.destination, chosen.api) != (None, None, None):
            return "a backfill of a route is of one source, of one destination and of every cause; leave those out"
        return None

    @property
    def which(self) -> Which:
        """The kind of deliveries it is about."""
        if self.act == "retry":
            return "due later"
        if self.act == "cancel":
            return "dead" if self.selection.is_about_failures else "not begun"
        if self.act == "unblock":
            return "blocked"
        if self.selection.backfill:
            return "backfill"
        return "dead" if self.selection.dead_only else "ended or dead"

    @property
    def is_about_dead(self) -> bool:
        """True when only dead letters are selected; one that was taken up again meanwhile is not."""
        return self.which in {"dead", "blocked"}

    def parameters(self, which: Which) -> dict[str, object]:
        """The bound parameters of the statements about `which`."""
        chosen = self.selection
        given: dict[str, object] = {
            "route": chosen.route,
            "seq": chosen.seq,
            "entity_type": chosen.entity_type,
            "entity_id": chosen.entity_id,
            "event_type": chosen.event_type,
            "since": None if chosen.since is None else time_text(chosen.since),
            "until": None if chosen.until is None else time_text(chosen.until),
        }
        if which == "backfill":
            route = self.config.routes[str(chosen.route)]
            wanted: dict[str, Sequence[str]] = {
                "entity_types": route.when.entity_type,
                "event_types": route.when.event_type,
                "actions": route.when.action,
            }
            lists = {name: rows_param({"value": value} for value in values) for name, values in wanted.items()}
            return given | {"of_source": route.source} | lists
        given |= {"source": chosen.source, "routes": self._routes}
        if which == "ended or dead":
            return given
        status = None if chosen.status is None else str(chosen.status)
        return given | {
            "cause": chosen.cause,
            "status": status,
            "error": chosen.error,
            "error_sha256": chosen.error_sha256,
        }

    @property
    def _routes(self) -> str | None:
        """The routes to a destination, or that ask an api, as rows of a parameter; None: neither is named."""
        chosen = self.selection
        if chosen.destination is None and chosen.api is None:
            return None
        return rows_param(
            {"value": name}
            for name, route in self.config.routes.items()
            if chosen.destination in {None, route.destination} and chosen.api in {None, _api_of(route)}
        )


def _api_of(route: Route) -> str | None:
    return None if route.sync is None else route.sync.fetch.api
