"""The end of every run: relays that are well get everything done."""

from __future__ import annotations

from collections import defaultdict

from inbox.db.schema import SUSPECT_CRASHES
from relay import facts
from relay.lifecycle import State
from relay.store.selection import Selection
from tests.model.actors import SUCCEEDED
from tests.model.history import Key, LaneKey
from tests.model.moment import Violation
from tests.model.stage import Stage
from tests.model.world import POLICIES, ROUTES

_LONG_ENOUGH = 100
"""Seconds: every lease has run out, every retry is due."""
_ROUNDS = 100
"""More than there are deliveries in a run, of which each round ends one at least."""


def finish(stage: Stage) -> None:
    """Let a relay that begins now do all that is left.

    Raises:
        Violation: something is left for good, or ended in a way it must not.
    """
    relay = stage.relays[0]
    for each in stage.relays:
        each.restart()
    stage.perform(stage.make.start(relay))
    stage.everything_holds()
    for _ in range(_ROUNDS):
        if not is_left(stage):
            break
        stage.advance(_LONG_ENOUGH)
        stage.perform(stage.make.reap(relay))
        stage.perform(stage.make.sequence(relay, 500))
        stage.everything_holds()
        stage.perform(stage.make.claim(relay, ROUTES, 500, answered=True))
        for route in sorted({row.route for row in stage.open.values() if row.crashes >= SUSPECT_CRASHES}):
            stage.perform(stage.make.claim_suspect(relay, [route]))
        for held in relay.held.values():
            stage.begin(relay, held)
            held.outcome = SUCCEEDED
        if relay.held:
            stage.perform(stage.make.record(relay, relay.finished(), answered=True))
        elif not stage.perform(stage.make.replay(Selection(route="blocking"))) and is_left(stage):
            raise Violation("nobody can finish it", list(stage.open.values()))
        stage.everything_holds()
    else:
        raise Violation("it takes for ever", list(stage.open.values()))
    stage.perform(stage.make.verify())
    stage.everything_holds()
    if evidence := ended_wrongly(stage):
        raise Violation("it ended wrongly", evidence)


def is_left(stage: Stage) -> bool:
    """Whether there is more than what stands dead."""
    return any(row.state is not State.DEAD for row in stage.open.values())


def ended_wrongly(stage: Stage) -> list[object]:
    """Deliveries that did not end as they may; on `latest`, lanes whose newest event does not have the last word."""
    entries = stage.history.entries
    evidence: list[object] = [
        (key, entries[key][-1])
        for key in stage.ledger.lanes
        if not isinstance(entries[key][-1].fact, facts.Delivered | facts.Skipped | facts.Superseded | facts.Dead)
    ]
    lanes: dict[LaneKey, list[Key]] = defaultdict(list)
    for key, lane in stage.ledger.lanes.items():
        if POLICIES[lane[0]].ordering == "latest":
            lanes[lane].append(key)
    for keys in lanes.values():
        newest = max(keys, key=stage.ledger.order)
        if isinstance(entries[newest][-1].fact, facts.Superseded):
            evidence.append((newest, entries[newest][-1]))
        delivered_at = [entry.number for entry in entries[newest] if isinstance(entry.fact, facts.Delivered)]
        evidence += [
            entry
            for key in keys
            for entry in entries[key]
            if key != newest
            and isinstance(entry.fact, facts.Delivered)
            and delivered_at
            and entry.number > delivered_at[0]
            and not entry.fact.late
        ]
    return evidence
