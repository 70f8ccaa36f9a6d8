"""Gates in the database: shared by all relays, and nothing is lost behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.config.retry import BreakerLimits, Retry
from inbox.config.types import Duration
from relay.delivery.gates import Breaker, ClaimFilter, Gate, GateKey, RateLimit, Report, entity_key
from relay.delivery.outcome import Call, Delivered, Delivery, ErrorClass, Failed, Outcome
from relay.delivery.policy import RoutePolicy, Schedule
from relay.store import gates
from relay.store.claim import PROBE_GIVEN_UP_AFTER, claim, claim_probe, claim_suspect
from relay.store.database import Database, FailedAlone
from relay.store.record import record
from relay.store.sequence import sequence
from tests.helpers.all_orders import all_orders
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.stepping import Stepper
from tests.store.conftest import FakeClock, Steps, an_event

CRM = ("destination", "crm")
IDENTITY = ("api", "identity")
LIMITS = BreakerLimits(calls=3, failed=0.5, window=Duration(60), open_for=Duration(30))
POLICY = RoutePolicy(
    "strict",
    blocks_on_death=False,
    schedule=Schedule(Retry(jitter=0)),
    gates=(("source", "trivore"), ("route", "strict"), CRM, IDENTITY),
    breakers={CRM: LIMITS, IDENTITY: LIMITS},
)
POLICIES = {"strict": POLICY}
WELL = Delivered((Call("forward", "POST", "https://crm/", "answered", 1.0, 200),), "forwarded")


def failing(error_class: ErrorClass, step: str = "forward") -> Failed:
    call = Call(step, "POST", "https://crm/", "answered", 1.0, 503)  # type: ignore[arg-type]  # one of them
    return Failed((call,), error_class, f"{step}: trouble")


def attempt(database: Database, *outcomes: Outcome, node: str = "r1") -> None:
    for outcome in outcomes:
        (delivery,) = claim(database, node, [(["strict"], 1)])
        record(database, POLICIES, node, [(delivery, outcome)], list(gates.read_gates(database).breakers))


def admitted(database: Database) -> str:
    return gates.read_gates(database).admit(POLICY.gates)


def test_failures_that_two_relays_see_open_one_breaker_for_both(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 5)))
    attempt(steps.database, failing("server_error"), failing("unknown"), node="r1")
    assert admitted(steps.database) == "all"
    attempt(steps.database, failing("throttled"), node="r2")
    assert admitted(steps.database) == "none"


def test_a_success_counts_where_there_was_trouble(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 8)))
    attempt(steps.database, failing("server_error"), WELL, WELL, WELL, failing("server_error"))
    assert admitted(steps.database) == "all"
    attempt(steps.database, failing("server_error"))
    assert admitted(steps.database) == "none"


@pytest.mark.parametrize("error_class", ["rejected", "conflict", "redirect", "bad_answer", "not_found"])
def test_an_endpoint_that_answers_is_well_whatever_it_says(steps: Steps, error_class: ErrorClass) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 9)))
    attempt(steps.database, *[failing(error_class)] * 6)
    assert admitted(steps.database) == "all"


@pytest.mark.parametrize(("step", "key"), [("fetch", IDENTITY), ("update", CRM)])
def test_what_was_called_last_is_what_is_not_well(steps: Steps, step: str, key: tuple[str, str]) -> None:
    steps.arrive(an_event(1))
    attempt(steps.database, failing("auth", step))
    assert list(gates.read_gates(steps.database).breakers) == [key]


def test_refused_credentials_use_no_attempt_and_the_delivery_goes_out_when_they_are_mended(
    steps: Steps, clock: FakeClock
) -> None:
    steps.arrive(an_event(1))
    for _ in range(3):
        clock.advance(10_000)
        (delivery,) = claim_probe(steps.database, "r1", "strict", [CRM])
        assert delivery.attempt == 1
        record(steps.database, POLICIES, "r1", [(delivery, failing("auth"))])
        assert admitted(steps.database) == "none"
    clock.advance(10_000)
    (delivery,) = claim_probe(steps.database, "r1", "strict", [CRM])
    record(steps.database, POLICIES, "r1", [(delivery, WELL)], [CRM])
    assert admitted(steps.database) == "all"
    steps.facts_agree()


def test_an_attempt_that_went_on_to_the_destination_says_that_the_api_is_well(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    attempt(steps.database, failing("auth", "fetch"))
    clock.advance(30)
    (delivery,) = claim_probe(steps.database, "r1", "strict", [IDENTITY, CRM])
    calls = tuple(Call(step, "GET", "https://x/", "answered", 1.0, 200) for step in ("fetch", "find", "update"))
    record(steps.database, POLICIES, "r1", [(delivery, Delivered(calls, "updated"))], [IDENTITY])
    assert admitted(steps.database) == "all"


def test_where_only_one_is_due_that_may_kill_the_process_it_is_the_one_that_tries(
    steps: Steps, clock: FakeClock
) -> None:
    steps.arrive(an_event(1))
    attempt(steps.database, failing("auth"))
    with steps.database.write() as transaction:
        transaction.connection.exec_driver_sql("UPDATE open_delivery SET crashes = 2")
    clock.advance(30)
    (delivery,) = claim_probe(steps.database, "r1", "strict", [CRM])
    assert delivery.is_suspect


def test_an_attempt_that_finds_the_endpoint_still_unwell_is_not_counted_however_often(
    steps: Steps, clock: FakeClock
) -> None:
    steps.arrive(an_event(1))
    attempt(steps.database, failing("auth"))
    for _ in range(20):
        clock.advance(10_000)
        (delivery,) = claim_probe(steps.database, "r1", "strict", [CRM])
        assert delivery.attempt == 1
        record(steps.database, POLICIES, "r1", [(delivery, failing("server_error"))])
    assert steps.states() == [(1, "strict", "ready")]
    steps.facts_agree()


def test_one_of_all_relays_makes_the_one_attempt_that_tries_it(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"), an_event(3, "u3"))
    attempt(steps.database, failing("auth"))
    assert claim_probe(steps.database, "r1", "strict", [CRM]) == []
    clock.advance(30)
    assert len(claim_probe(steps.database, "r1", "strict", [CRM])) == 1
    assert claim_probe(steps.database, "r2", "strict", [CRM]) == []
    clock.advance(PROBE_GIVEN_UP_AFTER.total_seconds())
    assert len(claim_probe(steps.database, "r2", "strict", [CRM])) == 1, "the first one is gone"


def test_where_nothing_is_due_nothing_is_tried(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    attempt(steps.database, failing("auth"))
    clock.advance(30)
    (delivery,) = claim_probe(steps.database, "r1", "strict", [CRM])
    record(steps.database, POLICIES, "r1", [(delivery, failing("auth"))])
    clock.advance(60)
    with steps.database.write() as transaction:
        transaction.connection.exec_driver_sql("DELETE FROM open_delivery")
    assert claim_probe(steps.database, "r1", "strict", [CRM]) == []
    assert steps.rows("SELECT breaker FROM gate") == [{"breaker": "open"}]


def test_what_fails_behind_an_open_breaker_began_before_and_uses_no_attempt(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    first, second = claim(steps.database, "r1", [(["strict"], 2)])
    record(steps.database, POLICIES, "r1", [(first, failing("auth"))])
    record(steps.database, POLICIES, "r1", [(second, failing("server_error"))])
    counted = [row["detail"].get("counted", True) for row in steps.rows("SELECT detail FROM delivery_log ORDER BY id")]
    assert counted == [False, False]
    steps.facts_agree()


def test_a_410_retires_the_destination_until_a_person_resumes_it(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    attempt(steps.database, failing("gone"))
    clock.advance(10**6)
    assert admitted(steps.database) == "none"
    with steps.database.write() as transaction:
        assert gates.resume(transaction, CRM, transaction.lock_order())
    assert admitted(steps.database) == "all"
    attempt(steps.database, WELL)
    assert [(row["kind"], bool(row["firing"])) for row in steps.rows("SELECT * FROM alert ORDER BY id")] == [
        ("retired", True),
        ("retired", False),
    ]


# --- rates


def rate_limits(rate: float, calls: int = 1) -> dict[str, ClaimFilter]:
    return {"strict": ClaimFilter(rate_limits=(RateLimit(CRM, rate, calls),))}


def test_all_relays_together_claim_no_more_than_the_rate(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 61)))
    claimed = [len(claim(steps.database, node, [(["strict"], 8)], rate_limits(10.0))) for node in ("r1", "r2", "r1")]
    assert claimed == [8, 2, 0]
    clock.advance(0.5)
    assert [len(claim(steps.database, node, [(["strict"], 8)], rate_limits(10.0))) for node in ("r1", "r2")] == [5, 0]


def test_the_lowest_rate_on_the_way_counts_and_an_attempt_pays_for_all_its_calls(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 31)))
    claim_filter = {"strict": ClaimFilter(rate_limits=(RateLimit(CRM, 10.0, 2), RateLimit(IDENTITY, 100.0, 1)))}
    assert len(claim(steps.database, "r1", [(["strict"], 100)], claim_filter)) == 5
    assert claim(steps.database, "r1", [(["strict"], 100)], claim_filter) == []


def test_a_claim_that_finds_nothing_uses_nothing_of_the_rate(steps: Steps) -> None:
    for _ in range(5):
        assert claim(steps.database, "r1", [(["strict"], 8)], rate_limits(2.0)) == []
    steps.arrive(an_event(1), an_event(2, "u2"), an_event(3, "u3"))
    assert len(claim(steps.database, "r1", [(["strict"], 8)], rate_limits(2.0))) == 2


def test_routes_that_share_an_endpoint_use_its_rate_together_in_one_claim(steps: Steps, clock: FakeClock) -> None:
    routes = ["strict", "latest"]
    steps.arrive(*(an_event(n, f"u{n}", routes=routes) for n in range(1, 21)))
    claim_filters = {
        "strict": ClaimFilter(rate_limits=(RateLimit(CRM, 10.0, 1), RateLimit(IDENTITY, 5.0, 1))),
        "latest": ClaimFilter(rate_limits=(RateLimit(CRM, 10.0, 2),)),
    }
    both = claim(steps.database, "r1", [(["strict"], 4), (["latest"], 100)], claim_filters)
    assert Counter(delivery.route for delivery in both) == {"strict": 4, "latest": 3}, "4 calls and 3 times 2 of 10"
    assert claim(steps.database, "r2", [(["latest"], 100), (["strict"], 100)], claim_filters) == []
    clock.advance(0.5)
    assert len(claim(steps.database, "r2", [(["latest"], 1), (["strict"], 100)], claim_filters)) == 1 + 3


# --- two at once: nobody waits for somebody who waits for him

BOTH_WAYS = (["strict", "latest"], ["latest", "strict"])
RATED = {
    "strict": ClaimFilter(rate_limits=(RateLimit(CRM, 10.0, 1),)),
    "latest": ClaimFilter(rate_limits=(RateLimit(IDENTITY, 10.0, 1),)),
}


def in_all_orders(engine: Engine, prepare: Callable[[], None], operations: Mapping[str, Callable[[], object]]) -> None:
    """Do these at once, one statement at a time, in every order, until one of them fails."""

    def start() -> Mapping[str, Callable[[], object]]:
        prepare()
        return operations

    def look(stepper: Stepper) -> None:
        assert [stepped.error for stepped in stepper.operations.values() if stepped.error is not None] == []

    all_orders(engine, start, look, passing=lambda statement: statement.startswith("SELECT coalesce("))


def emptied(database: Database, *statements: str) -> Callable[[], None]:
    def _prepare() -> None:
        with database.write() as transaction:
            for statement in ("DELETE FROM gate", *statements):
                transaction.connection.exec_driver_sql(statement)

    return _prepare


GATES_THERE = "INSERT INTO gate (kind, name) VALUES ('api', 'identity'), ('destination', 'crm')"
ONE_THERE = "INSERT INTO gate (kind, name) VALUES ('destination', 'crm')"


@pytest.mark.parametrize("there", [(), (ONE_THERE,), (GATES_THERE,)])
def test_claims_that_take_turns_at_rated_routes_never_wait_for_each_other_in_a_circle(
    steps: Steps, there: Sequence[str]
) -> None:
    operations = {
        f"r{number} claims": partial(claim, steps.database, f"r{number}", [(routes, 8)], RATED)
        for number, routes in enumerate(BOTH_WAYS, 1)
    }
    in_all_orders(steps.database.engine, emptied(steps.database, *there), operations)


@pytest.mark.parametrize("there", [(), (ONE_THERE,), (GATES_THERE,)])
def test_neither_do_a_claim_and_the_attempts_that_breakers_hear_of(steps: Steps, there: Sequence[str]) -> None:
    limits = {"strict": msgspec.structs.replace(POLICY, breakers={CRM: LIMITS, IDENTITY: LIMITS})}

    def hear() -> None:
        with steps.database.write() as transaction:
            now = transaction.lock_order()
            reports = [Report(CRM, "unwell", "503"), Report(IDENTITY, "unwell", "503")]
            gates.listen(transaction, reports, limits, now)

    operations: dict[str, Callable[[], object]] = {
        "r1 claims": lambda: claim(steps.database, "r1", [(["strict", "latest"], 8)], RATED),
        "r2 records": hear,
    }
    in_all_orders(steps.database.engine, emptied(steps.database, *there), operations)


def test_neither_do_a_claim_and_one_that_tries_a_breaker(steps: Steps) -> None:
    claim_filter = ClaimFilter(rate_limits=(RateLimit(IDENTITY, 10.0, 1),))
    operations: dict[str, Callable[[], object]] = {
        "r1 claims": lambda: claim(steps.database, "r1", [(["latest", "strict"], 8)], RATED),
        "r2 tries": lambda: claim_probe(steps.database, "r2", "strict", [CRM], claim_filter),
    }
    in_all_orders(steps.database.engine, emptied(steps.database, GATES_THERE), operations)


@ON_POSTGRES
def test_who_locks_gates_one_after_the_other_is_noticed(steps: Steps) -> None:
    def one_by_one(*keys: GateKey) -> None:
        with steps.database.write() as transaction:
            for key in keys:
                gates.lock_all(transaction, [key])

    operations = {"r1": partial(one_by_one, CRM, IDENTITY), "r2": partial(one_by_one, IDENTITY, CRM)}
    with pytest.raises(AssertionError, match="deadlock detected"):
        in_all_orders(steps.database.engine, emptied(steps.database, GATES_THERE), operations)


# --- pauses


def pause(database: Database, gate: Gate) -> bool:
    with database.write() as transaction:
        return gates.pause(transaction, gate.key, who="kim", why="maintenance")


def resume(database: Database, gate: Gate) -> bool:
    with database.write() as transaction:
        return gates.resume(transaction, gate.key, transaction.lock_order())


@pytest.mark.parametrize(
    "gate", [Gate(source="trivore"), Gate(route="strict"), Gate(destination="crm"), Gate(api="identity")]
)
def test_a_pause_lasts_until_it_is_resumed_and_what_arrives_meanwhile_is_kept(steps: Steps, gate: Gate) -> None:
    steps.arrive(an_event(1))
    assert pause(steps.database, gate)
    assert not pause(steps.database, gate)
    steps.arrive(an_event(2), an_event(3, "u3"))
    assert admitted(steps.database) == "none"
    assert [state for _, _, state in steps.states()] == ["ready", "waiting", "ready"]
    (row,) = gates.held_back(steps.database)
    assert (row["paused_by"], row["pause_reason"]) == ("kim", "maintenance")
    assert resume(steps.database, gate)
    assert not resume(steps.database, gate)
    assert admitted(steps.database) == "all"
    assert gates.held_back(steps.database) == []


def paused(*entities: str) -> dict[str, ClaimFilter]:
    return {"strict": ClaimFilter(paused=tuple(("trivore", "USER", entity) for entity in entities))}


def test_one_entity_can_be_paused_while_the_others_go_on(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b"), an_event(3, "c"))
    with steps.database.write() as transaction:
        gates.pause(transaction, entity_key("trivore", "USER", "b"), who="kim", why="odd")
    assert gates.read_gates(steps.database).paused_entities == (("trivore", "USER", "b"),)
    assert seqs(claim(steps.database, "r1", [(["strict"], 8)], paused("b"))) == [1, 3]
    assert seqs(claim(steps.database, "r1", [(["strict"], 8)], {})) == [2]


def test_a_paused_entity_of_another_source_is_another_one(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"))
    other = {"strict": ClaimFilter(paused=(("github", "USER", "a"), ("trivore", "GROUP", "a")))}
    assert seqs(claim(steps.database, "r1", [(["strict"], 8)], other)) == [1]


def test_what_may_have_killed_a_process_waits_too_while_its_entity_is_paused(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"))
    with steps.database.write() as transaction:
        transaction.connection.exec_driver_sql("UPDATE open_delivery SET crashes = 2")
    assert claim_suspect(steps.database, "r1", ["strict"], paused("a")["strict"].paused) == []
    assert seqs(claim_suspect(steps.database, "r1", ["strict"])) == [1]


def seqs(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.seq for delivery in deliveries]


def test_a_mountain_behind_a_pause_is_all_there_afterwards(steps: Steps) -> None:
    pause(steps.database, Gate(route="strict"))
    steps.arrive(*(an_event(n, f"u{n % 7}") for n in range(1, 51)))
    sequence(steps.database, POLICIES, "r1")
    resume(steps.database, Gate(route="strict"))
    done = 0
    while claimed := claim(steps.database, "r1", [(["strict"], 50)]):
        record(steps.database, POLICIES, "r1", [(delivery, WELL) for delivery in claimed])
        done += len(claimed)
    assert done == 50


def test_a_gate_that_cannot_be_read_holds_back_its_own_and_no_other(
    steps: Steps, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gates.as_breaker

    def unreadable(row: Any) -> Breaker:  # noqa: ANN401  # a result row
        if row.name == "crm":
            raise ValueError("year 10000 is out of range")
        return read(row)

    steps.arrive(an_event(1))
    attempt(database, failing("server_error"))
    other = msgspec.structs.replace(POLICY, gates=(("destination", "audit"),))
    told: list[FailedAlone] = []
    database.on_failed_alone = told.append
    monkeypatch.setattr(gates, "as_breaker", unreadable)
    known = gates.read_gates(database)
    assert (known.admit(POLICY.gates), known.admit(other.gates)) == ("none", "all")
    assert [item.item for item in told] == ["destination crm"]
