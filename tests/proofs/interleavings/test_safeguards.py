"""The search can fail: a relay that lacks one of its safeguards breaks a promise in at least one order.

Which promise, and which operations have to meet for it, tells what the safeguard is there for. The order lock is the write
lock on SQLite, without which nothing can be written at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from relay.store import claim, leases, rebuild, record, sequence
from relay.store.transaction import Transaction
from tests.helpers.databases import ON_POSTGRES
from tests.proofs.interleavings import scenes
from tests.proofs.interleavings.invariants import kept
from tests.proofs.interleavings.stage import Stage
from tests.proofs.planting import (
    WITHOUT_A_LOOK,
    Plant,
    a_lock_that_is_shared,
    changed,
    look_again_by_the_events_of_before,
    now_without_a_lock,
    replaced,
    the_lock_of_another_route,
    without_the_fence,
)

without_the_order_lock = replaced(Transaction, "take_order_lock", now_without_a_lock)
without_locked_heads = changed(sequence, "_HEADS", ("FOR UPDATE OF o", ""))
without_skipping = changed(claim, "_DUE", ("FOR UPDATE OF o SKIP LOCKED", ""))

LEASE_LOST = "a trusted lease is not in force"
TWO_TRUST = "two trust a lease of one lane"
TWO_HEADS = r"an operation failed.*ux_open_delivery_head"


class Safeguard(NamedTuple):
    """A planted fault, the operations that have to meet, and what is broken then."""

    scene: Callable[[Stage], None]
    names: tuple[str, ...]
    plants: tuple[Plant, ...]
    broken: str


def missing(safeguards: dict[str, Safeguard]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("safeguard", [pytest.param(s, id=name) for name, s in safeguards.items()])


def finds(stage: Stage, monkeypatch: pytest.MonkeyPatch, safeguard: Safeguard) -> None:
    safeguard.scene(stage)
    stage.keep()
    for plant in safeguard.plants:
        plant(monkeypatch)
    with pytest.raises(AssertionError, match=safeguard.broken):
        stage.all_orders(safeguard.names, kept, coarse=len(safeguard.names) > 2)


@ON_POSTGRES
@missing(
    {
        "without the order lock, record and sequence make two heads in one lane": Safeguard(
            scenes.a_head_in_flight, ("r1 records its success", "r2 sequences"), (without_the_order_lock,), TWO_HEADS
        ),
        "with the lock of another route, record and sequence make two heads in one lane": Safeguard(
            scenes.a_head_in_flight, ("r1 records its success", "r2 sequences"), (the_lock_of_another_route,), TWO_HEADS
        ),
        "with a lock that is shared, record and sequence make two heads in one lane": Safeguard(
            scenes.a_head_in_flight, ("r1 records its success", "r2 sequences"), (a_lock_that_is_shared,), TWO_HEADS
        ),
        "without the order lock, two that sequence the same events fold them twice": Safeguard(
            scenes.a_newer_one_takes_over,
            ("r1 sequences", "r1 sequences again"),
            (without_the_order_lock,),
            r"the facts say something else: .*Superseded.*t happen after",
        ),
        "without the order lock, sequence takes a head from the relay that works on it": Safeguard(
            scenes.two_lanes_at_once,
            ("r1 records", "r2 sequences", "r2 claims two"),
            (without_the_order_lock,),
            f"{LEASE_LOST}|leased_when_in_flight",
        ),
        "without the order lock, giving back and sequence make two heads in one lane": Safeguard(
            scenes.earlier_ones_behind_a_head_in_flight,
            ("r1 gives back", "r2 sequences"),
            (without_the_order_lock,),
            TWO_HEADS,
        ),
        "with neither the order lock nor locked heads, a lane is stuck for good": Safeguard(
            scenes.a_newer_one,
            ("r1 records its success", "r2 sequences"),
            (without_the_order_lock, without_locked_heads),
            r"a lane without its one head: .*'latest', 'USER\|u1'\), 0, 1\)",
        ),
        "without locked heads, sequence takes a head from the relay that claims it": Safeguard(
            scenes.an_earlier_one, ("r1 sequences", "r1 claims"), (without_locked_heads,), LEASE_LOST
        ),
        "without locked heads, sequence takes a head over from the relay that claims it": Safeguard(
            scenes.a_newer_one_takes_over, ("r1 sequences", "r1 claims"), (without_locked_heads,), LEASE_LOST
        ),
        "a claim that does not look again takes what another has claimed": Safeguard(
            scenes.an_earlier_one,
            ("r1 claims", "r2 claims two"),
            (without_skipping, changed(claim, "_LEASE", (" AND open_delivery.state || '' = 'ready'", ""))),
            TWO_TRUST,
        ),
    }
)
def test_on_postgres_without(stage: Stage, monkeypatch: pytest.MonkeyPatch, safeguard: Safeguard) -> None:
    finds(stage, monkeypatch, safeguard)


@missing(
    {
        "without the fence, a stale result ends what another relay works on": Safeguard(
            scenes.a_lease_taken_over,
            ("r1 records its success", "r2 renews"),
            (replaced(record, "still_leased", without_the_fence),),
            LEASE_LOST,
        ),
        "a renewal that ignores the token lets two relays work in one lane": Safeguard(
            scenes.a_lease_taken_over,
            ("r1 renews", "r2 renews"),
            (
                changed(
                    leases,
                    "_RENEW",
                    ("SELECT o.seq, o.route, o.lease_token", "SELECT o.seq, o.route, held.token AS lease_token"),
                    (" AND o.lease_token = held.token", ""),
                    (" AND open_delivery.lease_token = mine.lease_token", ""),
                    ("SET lease_until", "SET lease_token = mine.lease_token, lease_until"),
                ),
            ),
            TWO_TRUST,
        ),
        "giving back without the token gives away what another relay works on": Safeguard(
            scenes.a_lease_taken_over,
            ("r1 gives back", "r2 renews"),
            (changed(leases, "_GIVE_BACK", (" AND open_delivery.lease_token = returned.token", "")),),
            LEASE_LOST,
        ),
        "giving back without settling lets a later one be claimed first": Safeguard(
            scenes.earlier_ones_behind_a_head_in_flight,
            ("r1 gives back", "r2 claims"),
            (replaced(leases, "settle_lanes", lambda *_: []),),
            "a later one was claimed first",
        ),
        "taking back a lease that was renewed meanwhile is seen": Safeguard(
            scenes.a_lease_that_ran_out,
            ("r1 renews", "r2 reaps"),
            (replaced(leases, "_is_over", lambda *_: True),),
            LEASE_LOST,
        ),
        "a rebuild that looks again by the events of before removes what has arrived since": Safeguard(
            scenes.a_row_of_no_event,
            ("ann rebuilds", "a receiver takes in"),
            (look_again_by_the_events_of_before, changed(rebuild, "_REMOVE", WITHOUT_A_LOOK)),
            "a delivery is lost",
        ),
    }
)
def test_without(stage: Stage, monkeypatch: pytest.MonkeyPatch, safeguard: Safeguard) -> None:
    finds(stage, monkeypatch, safeguard)


def test_a_statement_that_looks_for_the_event_itself_removes_nothing_that_has_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes.a_row_of_no_event(stage)
    stage.keep()
    look_again_by_the_events_of_before(monkeypatch)
    assert stage.all_orders(["ann rebuilds", "a receiver takes in"], kept) >= 2


@ON_POSTGRES
def test_claims_that_do_not_skip_what_is_locked_wait_and_keep_every_promise(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes.an_earlier_one(stage)
    stage.keep()
    without_skipping(monkeypatch)
    assert stage.all_orders(["r1 claims", "r2 claims two"], kept) > 2
