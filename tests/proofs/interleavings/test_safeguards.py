"""The search can fail: a relay that lacks one of its safeguards breaks a promise in at least one order.

Which promise, and which operations have to meet for it, tells what the safeguard is there for.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from sqlalchemy import text

from relay.store import claim, lanes, leases, reap, record
from relay.store.audit import rebuild
from relay.store.database import Transaction
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.looking_again import WITHOUT_A_LOOK, look_again_by_the_events_of_before
from tests.proofs.interleavings import scenes
from tests.proofs.interleavings.invariants import kept
from tests.proofs.interleavings.scenes import Operations
from tests.proofs.interleavings.stage import Stage


def prepared(stage: Stage, scene: Callable[[Stage], Operations], *names: str) -> Operations:
    operations = scene(stage)
    stage.keep()
    return {name: operations[name.removesuffix(" again")] for name in names}


def without_the_order_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "lock_order", lambda transaction: transaction.now())


def changed(monkeypatch: pytest.MonkeyPatch, module: ModuleType, statement: str, *changes: tuple[str, str]) -> None:
    """Replace pieces of a statement of the store's."""
    original = getattr(module, statement)

    def _changed(*arguments: object, **options: bool) -> object:
        found = original(*arguments, **options).text
        for old, new in changes:
            assert old in found
            found = found.replace(old, new)
        return text(found)

    monkeypatch.setattr(module, statement, _changed)


def without_locked_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, lanes, "_heads", ("FOR UPDATE OF o", ""))


# Without the order lock. On SQLite it is the write lock, without which nothing can be written at all.


@ON_POSTGRES
def test_without_the_order_lock_record_and_sequence_make_two_heads_in_one_lane(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_head_in_flight, "r1 records its success", "r2 sequences")
    without_the_order_lock(monkeypatch)
    with pytest.raises(AssertionError, match=r"an operation failed.*ux_open_delivery_head"):
        stage.all_orders(operations, kept)


@ON_POSTGRES
def test_without_the_order_lock_two_that_sequence_the_same_events_fold_them_twice(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_newer_one_takes_over, "r1 sequences", "r1 sequences again")
    without_the_order_lock(monkeypatch)
    with pytest.raises(AssertionError, match=r"the log and the table disagree: .*superseded can't happen"):
        stage.all_orders(operations, kept)


@ON_POSTGRES
def test_without_the_order_lock_sequence_takes_a_head_from_the_relay_that_works_on_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.two_lanes_at_once, "r1 records", "r2 sequences", "r2 claims")
    without_the_order_lock(monkeypatch)
    with pytest.raises(AssertionError, match=r"a lease that is trusted is not there|leased_when_in_flight"):
        stage.all_orders(operations, kept, coarse=True)


@ON_POSTGRES
def test_without_the_order_lock_giving_back_and_sequence_make_two_heads_in_one_lane(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.earlier_ones_behind_a_head_in_flight, "r1 gives back", "r2 sequences")
    without_the_order_lock(monkeypatch)
    with pytest.raises(AssertionError, match=r"an operation failed.*ux_open_delivery_head"):
        stage.all_orders(operations, kept)


@ON_POSTGRES
def test_with_neither_the_order_lock_nor_locked_heads_a_lane_is_stuck_for_good(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_newer_one, "r1 records its success", "r2 sequences")
    without_the_order_lock(monkeypatch)
    without_locked_heads(monkeypatch)
    with pytest.raises(AssertionError, match=r"the log and the table disagree: .*has 0 heads and 1 that wait"):
        stage.all_orders(operations, kept)


@ON_POSTGRES
@pytest.mark.parametrize("scene", [scenes.an_earlier_one, scenes.a_newer_one_takes_over])
def test_without_locked_heads_sequence_takes_a_head_from_the_relay_that_claims_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, scene: Callable[[Stage], Operations]
) -> None:
    operations = prepared(stage, scene, "r1 sequences", "r1 claims")
    without_locked_heads(monkeypatch)
    with pytest.raises(AssertionError, match="a lease that is trusted is not there"):
        stage.all_orders(operations, kept)


# Without the fence.


def test_without_the_fence_a_stale_result_ends_what_another_relay_works_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_lease_taken_over, "r1 records its success", "r2 renews")
    changed(monkeypatch, record, "_leased", (" AND o.lease_token = done.token", ""))
    with pytest.raises(AssertionError, match="a lease that is trusted is not there"):
        stage.all_orders(operations, kept)


def test_a_renewal_that_ignores_the_token_lets_two_relays_work_in_one_lane(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_lease_taken_over, "r1 renews", "r2 renews")
    changed(
        monkeypatch,
        leases,
        "_renew",
        ("SELECT o.seq, o.route, o.lease_token", "SELECT o.seq, o.route, held.token AS lease_token"),
        (" AND o.lease_token = held.token", ""),
        (" AND open_delivery.lease_token = mine.lease_token", ""),
        ("SET lease_until", "SET lease_token = mine.lease_token, lease_until"),
    )
    with pytest.raises(AssertionError, match="two trust a lease of one lane"):
        stage.all_orders(operations, kept)


def test_giving_back_without_the_token_gives_away_what_another_relay_works_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_lease_taken_over, "r1 gives back", "r2 renews")
    changed(monkeypatch, leases, "_give_back", (" AND open_delivery.lease_token = returned.token", ""))
    with pytest.raises(AssertionError, match="a lease that is trusted is not there"):
        stage.all_orders(operations, kept)


# A rebuild beside a receiver.


def test_a_rebuild_that_looks_again_by_the_events_of_before_removes_what_has_arrived_since(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_row_of_no_event, "ann rebuilds", "a receiver takes in")
    look_again_by_the_events_of_before(monkeypatch)
    changed(monkeypatch, rebuild, "_remove", WITHOUT_A_LOOK)
    with pytest.raises(AssertionError, match=r"the log and the table disagree: .*is lost"):
        stage.all_orders(operations, kept)


def test_a_statement_that_looks_for_the_event_itself_removes_nothing_that_has_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.a_row_of_no_event, "ann rebuilds", "a receiver takes in")
    look_again_by_the_events_of_before(monkeypatch)
    assert stage.all_orders(operations, kept) >= 2


# Claims and leases that ran out.


@ON_POSTGRES
def test_claims_that_do_not_skip_what_is_locked_wait_and_keep_every_promise(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.an_earlier_one, "r1 claims", "r2 claims")
    changed(monkeypatch, claim, "_claim", ("FOR UPDATE SKIP LOCKED", ""))
    assert stage.all_orders(operations, kept) > 2


@ON_POSTGRES
def test_a_claim_that_does_not_look_again_takes_what_another_has_claimed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.an_earlier_one, "r1 claims", "r2 claims")
    changed(
        monkeypatch,
        claim,
        "_claim",
        ("FOR UPDATE SKIP LOCKED", ""),
        ("open_delivery.route = due.route AND open_delivery.state || '' = 'ready'", "open_delivery.route = due.route"),
    )
    with pytest.raises(AssertionError, match="two trust a lease of one lane"):
        stage.all_orders(operations, kept)


def test_taking_back_a_lease_that_was_renewed_meanwhile_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = prepared(stage, scenes.a_lease_that_ran_out, "r1 renews", "r2 reaps")
    changed(monkeypatch, reap, "_expired", ("AND o.lease_until <", "AND '2026-01-01' <"))
    with pytest.raises(AssertionError, match="a lease that is trusted is not there"):
        stage.all_orders(operations, kept)


def test_giving_back_without_settling_lets_a_later_one_be_claimed_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = prepared(stage, scenes.earlier_ones_behind_a_head_in_flight, "r1 gives back", "r2 claims")
    monkeypatch.setattr(leases, "settle_lanes", lambda *_: [])
    with pytest.raises(AssertionError, match="a later one was claimed first"):
        stage.all_orders(operations, kept)
