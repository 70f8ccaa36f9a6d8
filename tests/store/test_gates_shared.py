"""Gates in the database: shared by all relays, and nothing is lost behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from sqlalchemy import Engine

from relay.delivery.gates import Breaker, BreakerLimits, Gate, GateKey, RateLimit, Report, make_entity_key
from relay.delivery.outcome import Call, Delivered, Delivery, ErrorClass, Failed, Outcome, RateHold
from relay.store import gates
from relay.store.claim import PROBE_GIVEN_UP_AFTER, FreeCapacity, claim, claim_probe, claim_suspect
from relay.store.work import Work
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.locks import lock_by_hand
from tests.helpers.relaying import POLICIES, Steps, work_of
from tests.helpers.stepping import Stepper, all_orders
from tests.helpers.storing import an_event

CRM = ("destination", "crm")
IDENTITY = ("api", "identity")
LIMITS = BreakerLimits(calls=3, failed=0.5, window=60, open_for=30)
POLICY = msgspec.structs.replace(
    POLICIES["strict"],
    gates=(("source", "trivore"), ("route", "strict"), CRM, IDENTITY),
    breakers={CRM: LIMITS, IDENTITY: LIMITS},
)
WELL = Delivered((Call("forward", "POST", "https://crm/", "answered", 1.0, 200),), "forwarded")


def failing(error_class: ErrorClass, step: str = "forward") -> Failed:
    call = Call(step, "POST", "https://crm/", "answered", 1.0, 503)  # type: ignore[arg-type]  # one of them
    return Failed((call,), error_class, f"{step}: trouble")


@pytest.fixture
def steps(engine: Engine) -> Steps:
    return Steps(engine, {**POLICIES, "strict": POLICY})


def attempt(steps: Steps, *outcomes: Outcome, node: str = "r1") -> None:
    steps.node = node
    for outcome in outcomes:
        steps.record([(steps.claim(), outcome)], list(gates.read_gates(steps.work).breakers))


def probe(steps: Steps, node: str = "r1", *keys: GateKey) -> list[Delivery]:
    """Claim the one delivery that tries these breakers: the destination's, unless others are named."""
    return claim_probe(probing(steps, node, *(keys or [CRM])), "strict")


def probing(steps: Steps, node: str, *keys: GateKey) -> Work:
    policy = msgspec.structs.replace(POLICY, breakers=dict.fromkeys(keys, LIMITS))
    return work_of(steps.database, {**steps.policies, "strict": policy}, node=node)


def with_limits(steps: Steps, limits: Mapping[str, tuple[RateLimit, ...]], node: str = "r1") -> Work:
    """The context of a relay whose routes have these rate limits."""
    known = {
        name: msgspec.structs.replace(policy, rate_limits=limits.get(name, ()))
        for name, policy in steps.policies.items()
    }
    return work_of(steps.database, known, node=node)


def admission(steps: Steps) -> str:
    return gates.read_gates(steps.work).admit(POLICY.gates)


def test_failures_that_two_relays_see_open_one_breaker_for_both(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 5)))
    attempt(steps, failing("server_error"), failing("unknown"), node="r1")
    assert admission(steps) == "all"
    attempt(steps, failing("throttled"), node="r2")
    assert admission(steps) == "none"


def test_refused_credentials_use_no_attempt_and_the_delivery_goes_out_when_they_are_mended(steps: Steps) -> None:
    """Nor does an attempt that finds the endpoint unwell in another way then, however often."""
    steps.arrive(an_event(1))
    for number in range(20):
        error_class: ErrorClass = "auth" if number < 3 else "server_error"
        steps.advance(10_000)
        (delivery,) = probe(steps)
        assert delivery.attempt == 1
        steps.record([(delivery, failing(error_class))])
        assert admission(steps) == "none"
    steps.advance(10_000)
    (delivery,) = probe(steps)
    steps.record([(delivery, WELL)], [CRM])
    assert admission(steps) == "all"
    steps.facts_agree()


# --- rate holds


def a_throttled_call(seconds: float, status: int = 429) -> Call:
    return Call("forward", "POST", "https://crm/", "answered", 1.0, status, hold=RateHold(seconds, "Retry-After"))


HELD = Failed((a_throttled_call(30),), "throttled", "forward: answered 429")


def test_a_hold_that_one_relay_is_asked_for_holds_all_of_them_back_and_uses_no_attempt(steps: Steps) -> None:
    steps.arrive(an_event(1))
    attempt(steps, HELD, node="r1")
    (row,) = gates.read_closed_gates(steps.database)
    until = steps.clock.moment + timedelta(seconds=30)
    assert (row["name"], row["breaker"], row["held_until"]) == ("crm", "closed", until)
    for seconds, admits in ((0, "none"), (29, "none"), (1, "all")):
        steps.advance(seconds)
        assert admission(steps) == admits
    assert gates.read_closed_gates(steps.database) == []
    steps.node = "r2"
    assert steps.claim().attempt == 1
    steps.facts_agree()


@pytest.mark.parametrize("outcome", [HELD, failing("gone")])
def test_an_operator_ends_a_hold_or_what_a_410_has_retired(steps: Steps, outcome: Outcome) -> None:
    steps.arrive(an_event(1))
    attempt(steps, outcome)
    steps.advance(10**6 if outcome is not HELD else 0)
    assert admission(steps) == "none"
    assert (steps.resume(CRM), steps.resume(CRM)) == (True, False)
    assert admission(steps) == "all"


def test_a_result_that_is_discarded_holds_back_all_the_same(steps: Steps) -> None:
    """The endpoint asked for it; the owner of the delivery does not matter."""
    steps.arrive(an_event(1))
    late = steps.claim()
    steps.advance(60)
    steps.rescue("r2")
    assert steps.record([(late, HELD)])[0].fact is None
    assert admission(steps) == "none"


def test_a_breaker_is_tried_by_a_suspect_when_nothing_else_is_due(steps: Steps) -> None:
    steps.arrive(an_event(1))
    attempt(steps, failing("auth"))
    steps.do("UPDATE open_delivery SET crashes = 2")
    steps.advance(30)
    (delivery,) = probe(steps)
    assert delivery.is_suspect


def test_a_relay_that_has_one_in_hand_that_may_kill_it_tries_no_breaker_with_another(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    attempt(steps, failing("auth"))
    steps.do("UPDATE open_delivery SET crashes = 2")
    (suspect,) = claim_suspect(steps.work, ["strict"])
    steps.advance(30)
    assert probe(steps, "r1") == []
    (other,) = probe(steps, "r2")
    assert {suspect.seq, other.seq} == {1, 2}


def test_one_of_all_relays_makes_the_one_attempt_that_tries_it(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"), an_event(3, "u3"))
    attempt(steps, failing("auth"))
    assert probe(steps) == []
    steps.advance(30)
    assert len(probe(steps)) == 1
    assert probe(steps, "r2") == []
    steps.advance(PROBE_GIVEN_UP_AFTER.total_seconds())
    assert len(probe(steps, "r2")) == 1, "the first one is gone"


def test_a_failure_behind_an_open_breaker_uses_no_attempt(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    first, second = steps.claim_due(2, "strict")
    steps.record([(first, failing("auth"))])
    steps.record([(second, failing("server_error"))])
    counted = [row["detail"].get("counted", True) for row in steps.rows("SELECT detail FROM delivery_log ORDER BY id")]
    assert counted == [False, False]
    steps.facts_agree()


# --- rates


def claim_at_rate(steps: Steps, rate: float, node: str = "r1") -> int:
    """Claim up to eight at this rate of the destination; return their number."""
    return len(claim(with_limits(steps, {"strict": (RateLimit(CRM, rate, 1),)}, node), [FreeCapacity(["strict"], 8)]))


def test_all_relays_together_claim_no_more_than_the_rate(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 61)))
    assert [claim_at_rate(steps, 10.0, node) for node in ("r1", "r2", "r1")] == [8, 2, 0]
    steps.advance(0.5)
    assert [claim_at_rate(steps, 10.0, node) for node in ("r1", "r2")] == [5, 0]


def test_a_claim_that_finds_nothing_uses_nothing_of_the_rate(steps: Steps) -> None:
    for _ in range(5):
        assert claim_at_rate(steps, 2.0) == 0
    steps.arrive(an_event(1), an_event(2, "u2"), an_event(3, "u3"))
    assert claim_at_rate(steps, 2.0) == 2


def test_routes_that_share_an_endpoint_use_its_rate_together_in_one_claim(steps: Steps) -> None:
    routes = ["strict", "latest"]
    steps.arrive(*(an_event(n, f"u{n}", routes=routes) for n in range(1, 21)))
    limits = {"strict": (RateLimit(CRM, 10.0, 1), RateLimit(IDENTITY, 5.0, 1)), "latest": (RateLimit(CRM, 10.0, 2),)}
    both = claim(with_limits(steps, limits), [FreeCapacity(["strict"], 4), FreeCapacity(["latest"], 100)])
    assert Counter(delivery.route for delivery in both) == {"strict": 4, "latest": 3}, "4 calls and 3 times 2 of 10"
    assert claim(with_limits(steps, limits, "r2"), [FreeCapacity(["latest"], 100), FreeCapacity(["strict"], 100)]) == []
    steps.advance(0.5)
    assert (
        len(claim(with_limits(steps, limits, "r2"), [FreeCapacity(["latest"], 1), FreeCapacity(["strict"], 100)]))
        == 1 + 3
    )


def test_suspects_are_claimed_within_the_rate_too_also_by_a_probe(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 7)))
    steps.do("UPDATE open_delivery SET crashes = 2 WHERE seq > 1")
    rated = msgspec.structs.replace(POLICY, breakers={CRM: LIMITS}, rate_limits=(RateLimit(CRM, 2.0, 1),))
    one, other = (work_of(steps.database, {**steps.policies, "strict": rated}, node=node) for node in ("r1", "r2"))
    assert [len(claim_suspect(one, ["strict"])) for _ in range(3)] == [1, 1, 0]
    assert claim_at_rate(steps, 2.0) == 0, "they have used it"
    steps.advance(0.5)
    assert claim_at_rate(steps, 2.0) == 1
    steps.do("UPDATE gate SET breaker = 'open', breaker_until = '2000-01-01'")
    assert claim_probe(other, "strict") == []
    steps.advance(0.5)
    assert [delivery.is_suspect for delivery in claim_probe(other, "strict")] == [True]


# --- two at once, without a deadlock

RATED = {"strict": (RateLimit(CRM, 10.0, 1),), "latest": (RateLimit(IDENTITY, 10.0, 1),)}


def run_in_all_orders(steps: Steps, operations: Mapping[str, Callable[[], object]], *there: str) -> None:
    """Do these at once, one statement at a time, in every order, until one of them fails. `there` adds gates before."""

    def start() -> Mapping[str, Callable[[], object]]:
        steps.do("DELETE FROM gate", *there)
        return operations

    def look(stepper: Stepper) -> None:
        assert [stepped.error for stepped in stepper.operations.values() if stepped.error is not None] == []

    all_orders(steps.database.engine, start, look, passing=lambda statement: statement.startswith("SELECT coalesce("))


GATES_THERE = "INSERT INTO gate (kind, name) VALUES ('api', 'identity'), ('destination', 'crm')"
ONE_THERE = "INSERT INTO gate (kind, name) VALUES ('destination', 'crm')"


def test_gates_are_made_and_locked_in_the_order_of_their_keys_whatever_a_process_makes_of_a_set() -> None:
    """Two statements that insert or lock the same rows in different orders may deadlock within one step."""
    transaction = Mock(execute=Mock(return_value=[]))
    for keys in ([CRM, IDENTITY], [IDENTITY, CRM]):
        gates.lock_all(transaction, keys)
    assert [call.kwargs["gates"] for call in transaction.execute.call_args_list] == [[IDENTITY, CRM]] * 4


def claiming(steps: Steps, *routes: str, node: str = "r1") -> Callable[[], list[Delivery]]:
    return partial(claim, with_limits(steps, RATED, node), [FreeCapacity(routes, 8)])


def hearing(steps: Steps) -> Callable[[], object]:
    def hear() -> None:
        with steps.database.write() as transaction:
            now = transaction.take_order_lock()
            reports = [Report(CRM, "unwell", "503"), Report(IDENTITY, "unwell", "503")]
            gates.report_to_breakers(transaction, reports, steps.policies, now)

    return hear


def trying(steps: Steps) -> Callable[[], object]:
    return partial(claim_probe, with_limits(steps, {"strict": (RateLimit(IDENTITY, 10.0, 1),)}, "r2"), "strict")


@pytest.mark.parametrize("there", [(), (ONE_THERE,), (GATES_THERE,)])
@pytest.mark.parametrize("other", [partial(claiming, node="r2"), hearing, trying])
def test_locks_of_gates_never_deadlock(
    steps: Steps, there: Sequence[str], other: Callable[..., Callable[[], object]]
) -> None:
    beside = other(steps, "latest", "strict") if isinstance(other, partial) else other(steps)
    run_in_all_orders(steps, {"r1": claiming(steps, "strict", "latest"), "r2": beside}, *there)


@ON_POSTGRES
@pytest.mark.parametrize("how", ["SELECT 1 FROM gate WHERE name = 'crm' FOR UPDATE", "UPDATE gate SET name = name"])
def test_a_gate_that_is_locked_stops_the_claims_of_its_own_routes_alone(steps: Steps, how: str) -> None:
    steps.arrive(*(an_event(n, f"u{n}", routes=["strict"]) for n in (1, 2)), an_event(3, routes=["latest"]))
    steps.do("UPDATE open_delivery SET crashes = 2 WHERE seq = 2", ONE_THERE)
    with lock_by_hand(steps.database.engine, how):
        assert seqs(claiming(steps, "strict", "latest")()) == [3]
        assert claim_suspect(with_limits(steps, RATED), ["strict", "latest"]) == []
    assert seqs(claiming(steps, "strict", "latest")()) == [1]


# --- pauses


@pytest.mark.parametrize(
    "gate", [Gate(source="trivore"), Gate(route="strict"), Gate(destination="crm"), Gate(api="identity")]
)
def test_a_pause_lasts_until_it_is_resumed_and_what_arrives_meanwhile_is_kept(steps: Steps, gate: Gate) -> None:
    steps.arrive(an_event(1))
    assert (steps.pause(gate.key), steps.pause(gate.key)) == (True, False)
    steps.arrive(an_event(2), an_event(3, "u3"))
    assert admission(steps) == "none"
    assert [state for _, _, state in steps.states()] == ["ready", "waiting", "ready"]
    (row,) = gates.read_closed_gates(steps.database)
    assert (row["paused_by"], row["pause_reason"]) == ("kim", "maintenance")
    assert (steps.resume(gate.key), steps.resume(gate.key)) == (True, False)
    assert (admission(steps), gates.read_closed_gates(steps.database)) == ("all", [])


def test_one_entity_can_be_paused_while_the_others_go_on(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b"), an_event(3, "c"))
    steps.pause(make_entity_key("trivore", "USER", "b"))
    steps.pause(
        make_entity_key("github", "USER", "a"), make_entity_key("trivore", "GROUP", "c")
    )  # of another source or type
    assert seqs(claim(steps.work, [FreeCapacity(["strict"], 8)])) == [1, 3]
    steps.resume(make_entity_key("trivore", "USER", "b"))
    assert seqs(steps.claim_due()) == [2]


def test_a_suspect_waits_too_while_its_entity_is_paused(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"))
    steps.do("UPDATE open_delivery SET crashes = 2")
    steps.pause(make_entity_key("trivore", "USER", "a"))
    assert claim_suspect(steps.work, ["strict"]) == []
    steps.resume(make_entity_key("trivore", "USER", "a"))
    assert seqs(claim_suspect(steps.work, ["strict"])) == [1]


def seqs(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.seq for delivery in deliveries]


def test_a_gate_that_cannot_be_read_holds_back_its_own_alone(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    read = gates.as_breaker

    def unreadable(row: Any) -> Breaker:  # noqa: ANN401  # a result row
        if row.name == "crm":
            raise ValueError("year 10000 is out of range")
        return read(row)

    steps.arrive(an_event(1))
    attempt(steps, failing("server_error"))
    other = msgspec.structs.replace(POLICY, gates=(("destination", "audit"),))
    monkeypatch.setattr(gates, "as_breaker", unreadable)
    known = gates.read_gates(steps.work)
    assert (known.admit(POLICY.gates), known.admit(other.gates)) == ("none", "all")
    assert [item.item for item in steps.heard.alone] == ["destination crm"]
