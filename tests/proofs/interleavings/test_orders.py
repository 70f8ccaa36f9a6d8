"""Every promise is kept in every order of the statements of two or three relays."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import factorial
from typing import NamedTuple

import pytest

from relay.store import claim, leases, rebuild, sequence
from tests.helpers.databases import ON_POSTGRES
from tests.proofs.interleavings import stage as scenes
from tests.proofs.interleavings.stage import ALL, SCENES, Prepare, Scene, Stage, kept
from tests.proofs.planting import (
    WITHOUT_A_LOOK,
    Plant,
    a_lock_that_is_shared,
    change,
    look_again_by_the_events_of_before,
    replace,
    the_lock_of_another_route,
    without_the_fence,
    without_the_order_lock,
)

SHORT_ON_POSTGRES = (scenes.arrivals, scenes.an_earlier_one, scenes.a_head_that_blocks)
THREE = [scene for scene in SCENES if scene.triples]


def each(some: list[Scene], on_postgres: list[Scene], short: tuple[Prepare, ...] = ()) -> pytest.MarkDecorator:
    """Parametrize scenes: all of `some` on SQLite, which has few orders; on Postgres, those not `short` are long tests."""
    at_length = (
        pytest.param("postgres", scene, marks=() if scene.prepare in short else pytest.mark.long)
        for scene in on_postgres
    )
    return pytest.mark.parametrize(
        ("database_url", "scene"),
        [*(("sqlite", scene) for scene in some), *at_length],
        indirect=["database_url"],
        ids=lambda value: value.prepare.__name__ if isinstance(value, Scene) else value,
    )


@each(SCENES, SCENES, SHORT_ON_POSTGRES)
def test_in_every_order_of_two_every_promise_is_kept(stage: Stage, scene: Scene) -> None:
    scene.prepare(stage)
    stage.keep()
    for one, other in combinations_with_replacement(scene.operations, 2):
        names = [one, other if other != one else f"{one} again"]
        assert stage.all_orders(names, kept) >= 2, names


@each(THREE, [scene for scene in THREE if ALL or scene.prepare is scenes.a_head_that_blocks])
def test_in_every_order_of_three_every_promise_is_kept(stage: Stage, scene: Scene) -> None:
    """On Postgres only in the scene with the fewest orders, unless ORDERS=all."""
    scene.prepare(stage)
    stage.keep()
    for names in scene.triples:
        assert stage.all_orders(names, kept, coarse=True) >= factorial(3), names


def test_wherever_a_receiver_takes_in_during_a_rebuild_every_promise_is_kept(stage: Stage) -> None:
    scenes.a_row_of_no_event(stage)
    stage.keep()
    alone: set[int] = set()
    stage.all_orders(["ann rebuilds"], lambda order: alone.add(len(order.steps)))
    orders = stage.all_orders(["ann rebuilds", "a receiver takes in"], kept, swaps=False)
    assert orders >= (min(alone) + 1 if stage.engine.dialect.name == "postgresql" else 2)


# --- Negative controls: a relay without one of its safeguards breaks a promise in at least one order.
# The promise and the operations involved show the purpose of the safeguard. On SQLite, the order lock is the write lock,
# which cannot be left out.


LEASE_LOST = "a trusted lease is not in force"
TWO_TRUST = "two trust a lease of one lane"
TWO_HEADS = r"an operation failed.*ux_open_delivery_head"
STUCK = r"a lane without its one head: .*'latest', 'USER\|u1'\), 0, 1\)"
FOLDED_TWICE = r"the facts say something else: .*Superseded.*t happen after"
TAKEN = f"{LEASE_LOST}|leased_when_in_flight"

without_locked_heads = change(sequence, "_HEADS", ("FOR UPDATE OF o", ""))
without_skipping = change(claim, "_DUE", ("FOR UPDATE OF o SKIP LOCKED", ""))
without_another_look = change(claim, "_LEASE", (" AND open_delivery.state || '' = 'ready'", ""))
given_back_without_the_token = change(leases, "_GIVE_BACK", (" AND open_delivery.lease_token = returned.token", ""))
renewed_without_the_token = change(
    leases,
    "_RENEW",
    ("SELECT o.seq, o.route, o.lease_token", "SELECT o.seq, o.route, held.token AS lease_token"),
    (" AND o.lease_token = held.token", ""),
    (" AND open_delivery.lease_token = mine.lease_token", ""),
    ("SET lease_until", "SET lease_token = mine.lease_token, lease_until"),
)
BLIND_TO_ARRIVALS = (look_again_by_the_events_of_before, change(rebuild, "_REMOVE", WITHOUT_A_LOOK))
RECORD_AND_SEQUENCE = "r1 records its success, r2 sequences"
REBUILD_AND_RECEIVE = "ann rebuilds, a receiver takes in"


class Safeguard(NamedTuple):
    """A scene, its operations, the planted faults, and the promise that they break."""

    scene: Prepare
    operations: str
    plants: tuple[Plant, ...]
    broken: str


OF_POSTGRES: dict[str, Safeguard] = {
    "without the order lock, record and sequence make two heads in one lane": Safeguard(
        scenes.a_head_in_flight, RECORD_AND_SEQUENCE, (without_the_order_lock,), TWO_HEADS
    ),
    "with the lock of another route, record and sequence make two heads in one lane": Safeguard(
        scenes.a_head_in_flight, RECORD_AND_SEQUENCE, (the_lock_of_another_route,), TWO_HEADS
    ),
    "with a lock that is shared, record and sequence make two heads in one lane": Safeguard(
        scenes.a_head_in_flight, RECORD_AND_SEQUENCE, (a_lock_that_is_shared,), TWO_HEADS
    ),
    "without the order lock, two that sequence the same events fold them twice": Safeguard(
        scenes.a_newer_one_takes_over, "r1 sequences, r1 sequences again", (without_the_order_lock,), FOLDED_TWICE
    ),
    "without the order lock, sequence takes a head from the relay that works on it": Safeguard(
        scenes.two_lanes_at_once, "r1 records, r2 sequences, r2 claims two", (without_the_order_lock,), TAKEN
    ),
    "without the order lock, giving back and sequence make two heads in one lane": Safeguard(
        scenes.earlier_ones_behind_a_head_in_flight, "r1 gives back, r2 sequences", (without_the_order_lock,), TWO_HEADS
    ),
    "with neither the order lock nor locked heads, a lane is stuck for good": Safeguard(
        scenes.a_newer_one, RECORD_AND_SEQUENCE, (without_the_order_lock, without_locked_heads), STUCK
    ),
    "without locked heads, sequence takes a head from the relay that claims it": Safeguard(
        scenes.an_earlier_one, "r1 sequences, r1 claims", (without_locked_heads,), LEASE_LOST
    ),
    "without locked heads, sequence takes a head over from the relay that claims it": Safeguard(
        scenes.a_newer_one_takes_over, "r1 sequences, r1 claims", (without_locked_heads,), LEASE_LOST
    ),
    "a claim that does not look again takes what another has claimed": Safeguard(
        scenes.an_earlier_one, "r1 claims, r2 claims two", (without_skipping, without_another_look), TWO_TRUST
    ),
}
OF_BOTH: dict[str, Safeguard] = {
    "without the fence, a stale result ends what another relay works on": Safeguard(
        scenes.a_lease_taken_over, "r1 records its success, r2 renews", (without_the_fence,), LEASE_LOST
    ),
    "a renewal that ignores the token lets two relays work in one lane": Safeguard(
        scenes.a_lease_taken_over, "r1 renews, r2 renews", (renewed_without_the_token,), TWO_TRUST
    ),
    "giving back without the token gives away what another relay works on": Safeguard(
        scenes.a_lease_taken_over, "r1 gives back, r2 renews", (given_back_without_the_token,), LEASE_LOST
    ),
    "giving back without settling lets a later one be claimed first": Safeguard(
        scenes.earlier_ones_behind_a_head_in_flight,
        "r1 gives back, r2 claims",
        (replace(leases, "settle_lanes", lambda *_: []),),
        "a later one was claimed first",
    ),
    "taking back a lease that was renewed meanwhile is seen": Safeguard(
        scenes.a_lease_that_ran_out,
        "r1 renews, r2 rescues",
        (replace(leases, "_is_over", lambda *_: True),),
        LEASE_LOST,
    ),
    "a rebuild that looks again by the events of before removes what has arrived since": Safeguard(
        scenes.a_row_of_no_event, REBUILD_AND_RECEIVE, BLIND_TO_ARRIVALS, "a delivery is lost"
    ),
}


@pytest.mark.parametrize(
    ("database_url", "name"),
    [("postgres", name) for name in (*OF_POSTGRES, *OF_BOTH)] + [("sqlite", name) for name in OF_BOTH],
    indirect=["database_url"],
)
def test_without_a_safeguard_a_promise_is_broken(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    prepare, operations, plants, broken = (OF_POSTGRES | OF_BOTH)[name]
    names = operations.split(", ")
    prepare(stage)
    stage.keep()
    for plant in plants:
        plant(monkeypatch)
    with pytest.raises(AssertionError, match=broken):
        stage.all_orders(names, kept, coarse=len(names) > 2)


def test_a_rebuild_removes_no_delivery_with_an_event(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes.a_row_of_no_event(stage)
    stage.keep()
    look_again_by_the_events_of_before(monkeypatch)
    assert stage.all_orders(REBUILD_AND_RECEIVE.split(", "), kept) >= 2


@ON_POSTGRES
def test_claims_without_skip_locked_keep_every_promise(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes.an_earlier_one(stage)
    stage.keep()
    without_skipping(monkeypatch)
    assert stage.all_orders(["r1 claims", "r2 claims two"], kept) > 2
