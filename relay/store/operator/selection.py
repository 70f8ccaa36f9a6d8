"""Selections of operators: the conditions of a command, and the mistakes that one can have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import MAXYEAR, MINYEAR
from typing import Literal

import msgspec

from inbox.config.mistakes import nearest
from inbox.config.model import Config, Route
from inbox.db.dialect import rows_param
from inbox.db.reads import Row
from inbox.events.commands import CANCELLED_BY_STATE, DEAD_STATES, REPLAYED_BY_STATE
from inbox.events.states import OPEN_STATES, RETRYING, State
from inbox.events.timestamps import time_text
from relay.operations.asks import Selection
from relay.store.deliveries import Key, keys_param

Act = Literal["replay", "cancel", "unblock", "retry"]
Which = Literal["dead", "ended or dead", "backfill", "not begun", "blocked", "due later"]
"""The kind of deliveries that a command is about."""

GIVEN_UP = frozenset({State.DEAD, State.BLOCKED})
_OF_STATE: Mapping[str, Which] = {State.DEAD: "dead", State.BLOCKED: "blocked", RETRYING: "due later"}
"""The kinds of deliveries of a cancel by state; of any other state they are not begun."""


def keys_of(rows: Iterable[Row]) -> list[Key]:
    """Seq and route of each."""
    return [(int(row["seq"]), str(row["route"])) for row in rows]


class Choice(msgspec.Struct, frozen=True):
    """An act and what it is about, under one configuration."""

    act: Act
    selection: Selection
    config: Config
    until_seq: int | None = None
    """The highest seq when the command was asked: later events are left alone. None: it is not asked yet."""

    @property
    def mistake(self) -> str | None:
        """The reason why this selection is invalid, whatever its names; None when it is valid."""
        chosen = self.selection
        for name, moment in (("since", chosen.since), ("until", chosen.until)):
            if moment is not None and not MINYEAR < moment.year < MAXYEAR:
                return f"{name} the year {moment.year}? Name one between {MINYEAR + 1} and {MAXYEAR - 1}"
        return self._backfill_of_what or self._state_of_what

    @property
    def _backfill_of_what(self) -> str | None:
        chosen, routes = self.selection, self.config.routes
        if not chosen.backfill:
            return None
        if chosen.route not in routes:
            return f"a backfill of which route? Configured are: {', '.join(sorted(routes)) or 'none'}"
        if chosen.is_about_failures or (chosen.source, chosen.destination, chosen.api) != (None, None, None):
            return "a backfill of a route is of one source, of one destination and of every cause; leave those out"
        return "a backfill is about no state: leave the state out" if chosen.state is not None else None

    @property
    def _state_of_what(self) -> str | None:
        chosen, state = self.selection, self.selection.state
        if state is None:
            return None
        known = CANCELLED_BY_STATE if self.act == "cancel" else REPLAYED_BY_STATE
        if state not in known:
            return f"a {self.act} is about no state {state!r}; {nearest(state, known)}"
        if chosen.is_about_failures and state not in {*DEAD_STATES, RETRYING}:
            return f"a delivery that is {state} has no failure: leave cause, status and error out"
        if self.act == "replay" and state not in DEAD_STATES and not chosen.names_events:
            return "ended deliveries are replayed of named events or one entity, or all of a route by a backfill"
        return None

    @property
    def states(self) -> frozenset[State] | None:
        """States in which a delivery still has to be when the act changes it; None: any that allows the act."""
        state = self.selection.state
        if state is None:
            return GIVEN_UP if self.which in {"dead", "blocked"} else None
        if state == RETRYING:
            return frozenset({State.READY})
        return frozenset({State(state) if state in OPEN_STATES else State.ENDED})

    @property
    def which(self) -> Which:
        """The kind of deliveries it is about."""
        if self.act == "retry":
            return "due later"
        if self.act == "cancel" and self.selection.state is not None:
            return _OF_STATE.get(self.selection.state, "not begun")
        if self.act == "cancel":
            return "dead" if self.selection.is_about_failures else "not begun"
        if self.act == "unblock":
            return "blocked"
        if self.selection.backfill:
            return "backfill"
        return "dead" if self.selection.dead_only else "ended or dead"

    @property
    def names_seqs(self) -> bool:
        """True when statements get the parameter `seqs`."""
        return (self.selection.seqs, self.selection.deliveries) != (None, None)

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
            "until_fact": chosen.until_fact,
            "deliveries": None if chosen.deliveries is None else keys_param(_named(chosen.deliveries)),
        }
        if self.names_seqs:
            given["seqs"] = rows_param({"value": seq} for seq in self._seqs)
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
            return given | {"state": chosen.state}
        status = None if chosen.status is None else str(chosen.status)
        return given | {
            "state": None if chosen.state == RETRYING else chosen.state,
            "cause": chosen.cause,
            "status": status,
            "error": chosen.error,
            "error_sha256": chosen.error_sha256,
        }

    @property
    def _seqs(self) -> Sequence[int]:
        """The events that `seqs` and `deliveries` both name, where both are given."""
        chosen = self.selection
        seqs = {seq for seq, _ in _named(chosen.deliveries or ())}
        if chosen.seqs is None:
            return sorted(seqs)
        return chosen.seqs if chosen.deliveries is None else sorted(seqs.intersection(chosen.seqs))

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


def _named(deliveries: Iterable[str]) -> list[Key]:
    return [(int(seq), route) for seq, _, route in (each.partition("/") for each in deliveries)]


def _api_of(route: Route) -> str | None:
    return None if route.sync is None else route.sync.fetch.api
