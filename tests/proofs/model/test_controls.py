"""The model finds what it is there to find: a product that lacks one of its safeguards fails it.

Most controls run on SQLite, which is twice as fast, and the model that has to see the fault is the same on both. SQLite has
one writer at a time: nothing to order by a lock, and nothing commits out of order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import ModuleType

import msgspec
import pytest
from hypothesis.errors import FlakyFailure
from sqlalchemy import Engine, TextClause, text

from inbox.config.model import Ordering
from inbox.db import duplicates as duplicates_at_intake
from inbox.db import intake
from inbox.db.dialect import Sql
from relay.delivery.gates import GateKey, Gates
from relay.delivery.lifecycle import OpenDelivery
from relay.delivery.ordering import LastDelivered, covers, settle
from relay.delivery.outcome import Delivery, Outcome
from relay.delivery.policy import RoutePolicy
from relay.store import claim, coverage, duplicates, lanes, leases, reap, record, sequence
from relay.store.audit import rebuild
from relay.store.database import ROW, Database, Transaction, as_open_delivery
from relay.store.lanes import settle_lanes
from relay.store.operator import replay
from tests.helpers.kinds import ON_POSTGRES, ON_SQLITE
from tests.proofs.model.running import RUNS, SEED, run
from tests.proofs.model.snapshot import Violation
from tests.proofs.model.world import World
from tests.proofs.planting import WITHOUT_A_LOOK, look_again_by_the_events_of_before

SOON = "1"
"""A seed whose runs show each of these faults early; with another one some take minutes."""

Finished = tuple[Delivery, Outcome]
Statement = Callable[..., TextClause]


def without(statement: Statement, *parts: tuple[str, str]) -> Statement:
    """The statement with each of these parts replaced."""

    def changed(sql: Sql, *arguments: str, **options: bool) -> TextClause:
        words = statement(sql, *arguments, **options).text
        for part, instead in parts:
            assert part in words
            words = words.replace(part, instead)
        return text(words)

    return changed


def finds(world: World, *kinds: str, soon: str = SOON) -> None:
    found: BaseException | None = None
    try:
        run(world, runs=5 * RUNS, shrink=False, its_seed=SEED or soon)
    except Violation as violation:
        found = violation
    except FlakyFailure as unlike:  # Hypothesis does the run again, and what two do at once depends on their timing too
        (found,) = unlike.exceptions
    assert isinstance(found, Violation), found
    assert found.kind in kinds


@ON_SQLITE
def test_without_fencing_a_stale_result_is_recorded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fenced = record.record

    def unfenced(
        database: Database,
        policies: Mapping[str, RoutePolicy],
        relay_node: str,
        outcomes: Sequence[Finished],
        watched: Collection[GateKey],
    ) -> list[record.Recorded]:
        with database.read() as transaction:
            rows = transaction.execute(
                text("SELECT seq, route, lease_token FROM open_delivery WHERE state = 'in_flight'")
            )
        tokens = {(row.seq, row.route): row.lease_token for row in rows}
        passed = [
            (msgspec.structs.replace(delivery, lease_token=tokens.get((delivery.seq, delivery.route), 0)), outcome)
            for delivery, outcome in outcomes
        ]
        return fenced(database, policies, relay_node, passed, watched)

    monkeypatch.setattr(record, "record", unfenced)
    finds(world, "a result nobody made", "recorded twice", "the facts say something else")


@ON_POSTGRES
def test_without_the_order_lock_lanes_get_stuck(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "lock_order", Transaction.now)
    finds(world, "a lane without its one head", "an operation failed", "the facts say something else")


@ON_SQLITE
def test_skip_locked_alone_keeps_no_order(world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX ux_open_delivery_head"))
    anything = "IN ('received', 'waiting', 'ready')"
    monkeypatch.setattr(
        claim,
        "_claim",
        without(
            claim._claim,
            ("state = 'ready'", f"state {anything}"),
            ("state || '' = 'ready'", f"state {anything}"),
            ("due_at <=", "coalesce(due_at, '2020-01-01 00:00:00Z') <="),
            ("due_at >=", "coalesce(due_at, '2020-01-01 00:00:00Z') >="),
        ),
    )
    finds(
        world,
        "a lane without its one head",
        "two trust a lease of one lane",
        "a trusted lease is not in force",
        "claimed before an earlier one",
        "called after a later one",
        "an operation failed",
    )


@ON_POSTGRES
def test_a_cursor_loses_what_commits_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    last = 0

    def by_cursor(database: Database, policies: Mapping[str, RoutePolicy], relay_node: str, batch: int = 500) -> int:
        nonlocal last
        with database.write() as transaction:
            now = transaction.lock_order()
            rows = transaction.execute(
                text(
                    f"SELECT {ROW} FROM open_delivery o WHERE state = 'received' AND seq > :last ORDER BY seq LIMIT :batch"
                ),
                last=last,
                batch=batch,
            )
            received = [as_open_delivery(row) for row in rows]
            left = coverage.supersede_covered(transaction, received, policies, now)
            transaction.write_back(settle_lanes(transaction, left, policies, now), relay_node)
        last = max([last, *(row.seq for row in received)])
        return len(received)

    monkeypatch.setattr(sequence, "sequence", by_cursor)
    finds(world, "nobody can finish it")


@ON_SQLITE
def test_giving_back_without_the_attempt_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_give_back", without(leases._give_back, ("attempt = open_delivery.attempt - 1, ", "")))
    finds(world, "the facts say something else", "verify finds a difference")


@ON_SQLITE
def test_reaping_without_waiting_for_the_lease_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_any_expired", "_expired"):
        monkeypatch.setattr(reap, name, without(getattr(reap, name), ("o.lease_until <", "'2000-01-01 00:00:00Z' <")))
    finds(world, "a trusted lease is not in force")


@ON_SQLITE
def test_coverage_without_skew_and_resolution_drops_what_is_not_proven(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopes(last: LastDelivered, key: tuple[datetime, int], _skew: timedelta) -> bool:
        return key < last.key if last.fetch_began_at is None else last.fetch_began_at >= key[0]

    monkeypatch.setattr(coverage, "covers", hopes)
    finds(world, "superseded without a stand-in")


@ON_SQLITE
@pytest.mark.long
def test_coverage_without_a_fetch_that_takes_every_clock_for_right_drops_what_is_not_proven(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believes(last: LastDelivered, key: tuple[datetime, int], skew: timedelta) -> bool:
        return key < last.key if last.fetch_began_at is None else covers(last, key, skew)

    monkeypatch.setattr(coverage, "covers", believes)
    finds(world, "superseded without a stand-in")


@ON_SQLITE
def test_without_a_look_for_what_a_sweep_has_told_it_is_told_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "duplicates_swept_event", lambda *_: False)
    finds(world, "told again after a sweep")


@ON_SQLITE
@pytest.mark.long
def test_a_sweeps_event_that_stands_for_any_number_of_webhooks_drops_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage, "_standing_for_others", lambda *_: set())
    finds(world, "superseded without a stand-in")


@ON_SQLITE
@pytest.mark.long
def test_a_success_in_the_lane_is_no_proof_for_a_repeat(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "covers", lambda last, key, _skew: last.key >= key)
    finds(world, "a repeat is judged wrongly", "re-armed without need", "it ended wrongly", soon="2")


@ON_SQLITE
@pytest.mark.long
def test_a_repeat_that_is_counted_and_not_judged_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = duplicates_at_intake.SQLITE_COUNT.text.replace("handled_at = NULL, ", "")
    assert counting != duplicates_at_intake.SQLITE_COUNT.text
    monkeypatch.setattr(intake, "SQLITE_COUNT", text(counting))
    finds(world, "a repeat is lost")


@ON_SQLITE
def test_without_healing_the_dead_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "heal", lambda *_: coverage.Healing([], {}))
    finds(world, "dead though a later one succeeded")


@ON_SQLITE
@pytest.mark.long
def test_dead_ones_that_a_success_leaves_and_nobody_notes_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "go_on_healing", lambda *_: None)
    finds(world, "dead though a later one succeeded")


@ON_SQLITE
@pytest.mark.long
def test_the_newest_before_what_is_still_to_be_folded_is_followed_by_older_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetting_the_rest(
        ordering: Ordering, lane: Iterable[OpenDelivery], now: datetime, first_delay: timedelta, *_: object
    ) -> list[OpenDelivery]:
        return settle(ordering, lane, now, first_delay)

    monkeypatch.setattr(lanes, "settle", forgetting_the_rest)
    finds(world, "claimed before an earlier one", "called after a later one")


@ON_SQLITE
@pytest.mark.parametrize("forgetful", [replay, record])
def test_a_lane_that_is_not_settled_afterwards_stands_still(
    world: World, monkeypatch: pytest.MonkeyPatch, forgetful: ModuleType
) -> None:
    def unsettled(_: Transaction, changed: Iterable[OpenDelivery], *__: object) -> list[OpenDelivery]:
        return list(changed)

    monkeypatch.setattr(forgetful, "settle_lanes", unsettled)
    finds(world, "a lane without its one head")


def test_a_rebuild_that_looks_again_by_the_events_of_before_loses_what_arrives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again_by_the_events_of_before(monkeypatch)
    monkeypatch.setattr(rebuild, "_remove", without(rebuild._remove, WITHOUT_A_LOOK))
    finds(world, "a delivery is lost")


@ON_SQLITE
def test_a_pause_that_claim_does_not_look_at_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an entity, so that it is no matter of the routes that are asked for."""
    monkeypatch.setattr(Gates, "paused_entities", ())
    finds(world, "claimed while it is paused")


@ON_SQLITE
def test_a_breaker_that_nobody_hears_of_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "listen", lambda *_: {})
    finds(world, "a breaker turned without a reason")


@ON_SQLITE
def test_probes_that_are_not_noted_go_out_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "store", lambda *_: None)
    finds(world, "two try one breaker")
