"""The database's clock runs ahead and is put right, goes back, or jumps forward: on both databases, to the second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, event, text

from inbox.clock import SystemClock
from inbox.config.model import Api
from inbox.events.timestamps import as_time, time_text
from relay.delivery import facts
from relay.delivery.alerts import Alert
from relay.delivery.gates import BreakerLimits, RateLimit
from relay.delivery.outcome import Call, Delivered, Failed, RateHold
from relay.delivery.policy import Policies
from relay.delivery.rate_holds import HoldRequest
from relay.store import alerts, nodes, pull_in_deliveries
from relay.store.claim import Room, claim, claim_probe
from relay.store.clock import DatabaseClock
from relay.store.gates import acquire_rate, held_for, hold, read_gates
from relay.store.leases import renew
from relay.store.pull_in_deliveries import MOST_BATCHES, Horizon
from relay.store.pull_in_times import BATCH, TooFarAhead
from relay.store.reap import reap
from relay.store.record import record, record_each
from relay.store.sweeps import Turn, fail, is_due, take
from tests.helpers.relaying import CONFIG, DONE, POLICIES, UNWELL, FakeClock, Monotonic, Steps
from tests.helpers.storing import START, a_fact, an_event
from tests.store.verifying import differences, mend

HOUR = 3600.0
AUDIT = ("destination", "audit")
ROUTED = msgspec.structs.replace(
    POLICIES["strict"],
    gates=(AUDIT,),
    breakers={AUDIT: BreakerLimits(calls=1, open_for=30, longest=600)},
    rate_limits=(RateLimit(AUDIT, 0.1, 1),),
    longest_holds={AUDIT: timedelta(seconds=60)},
)
REFUSED = Failed((Call("forward", "POST", "https://audit.example.com", "answered", 1.0, 503),), "server_error", "503")
GATED = {"strict": ROUTED}


def pull_in(steps: Steps, policies: Policies = POLICIES, horizon: Horizon | None = None) -> list[TooFarAhead]:
    return (horizon or Horizon()).pull_in(steps.database, CONFIG, policies, "r1")


def due_in(steps: Steps) -> list[tuple[int, float]]:
    rows = steps.rows("SELECT seq, due_at FROM open_delivery WHERE state = 'ready' ORDER BY seq")
    return [(row["seq"], (row["due_at"] - steps.clock.moment).total_seconds()) for row in rows]


@contextlib.contextmanager
def an_hour_ahead(steps: Steps) -> Iterator[None]:
    """The database's clock runs ahead, and is put right."""
    steps.advance(HOUR)
    yield
    steps.advance(-HOUR)


# --- it ran ahead, and is put right


def test_heads_that_were_never_attempted_are_due_at_once(steps: Steps) -> None:
    with an_hour_ahead(steps):
        steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    assert steps.claim_due(9, "strict") == [], "nothing would be claimed for an hour"

    assert [(one.seq, one.column) for one in pull_in(steps)] == [(1, "due_at"), (2, "due_at")]

    assert [delivery.seq for delivery in steps.claim_due(9, "strict")] == [1, 2]
    steps.facts_agree()
    assert differences(steps.database) == []


def test_a_retry_is_due_after_the_delay_that_it_was_given_and_the_log_has_why(steps: Steps) -> None:
    steps.arrive(an_event(1))
    with an_hour_ahead(steps):
        steps.attempt(UNWELL)

    assert pull_in(steps) != []

    assert dict(due_in(steps)) == {1: pytest.approx(5, abs=1)}
    assert steps.kinds() == [(1, "attempt_failed"), (1, "rescheduled")]
    for later in (0, 3, HOUR + 60):  # also when the clock comes again to where the fact was written
        steps.advance(later)
        assert differences(steps.database) == []
        steps.facts_agree()
    delivery = steps.claim()
    assert delivery.attempt == 2
    steps.record([(delivery, DONE)])
    steps.facts_agree()


def test_a_retry_that_was_set_by_a_right_clock_stays_where_it_is(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    for retry_after in (None, 7200.0, 86400.0):
        steps.attempt(Failed((), "throttled", "429", retry_after))
    before = due_in(steps)
    assert pull_in(steps) == []
    steps.advance(-4)
    assert pull_in(steps) == [], "a small correction is let be"
    steps.advance(4)
    assert due_in(steps) == before


def test_one_that_ends_while_it_is_looked_at_is_no_finding(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    steps.attempt(Failed((), "throttled", "429", 60), route="latest")
    look = pull_in_deliveries._next_due_later
    looked: list[int] = []

    def look_just_before_a_newer_one_arrives(*those: Any) -> Any:  # noqa: ANN401  # as they are handed on
        found = look(*those)
        looked.append(len(found[0]))
        steps.arrive(an_event(2, routes=["latest"]))
        return found

    monkeypatch.setattr(pull_in_deliveries, "_next_due_later", look_just_before_a_newer_one_arrives)
    assert differences(steps.database) == []
    assert looked == [1]
    assert steps.kinds() == [(1, "attempt_failed"), (1, "superseded"), (2, "took_over")]


def test_retries_behind_which_others_were_made_by_a_wrong_clock_do_not_hide_them(steps: Steps) -> None:
    """The wrong one is due between two that are right: no end of the index tells it."""
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.attempt(Failed((), "throttled", "429", 60))
    steps.attempt(Failed((), "throttled", "429", 86400))
    with an_hour_ahead(steps):
        steps.arrive(an_event(3, "u3"))
    assert [one.seq for one in pull_in(steps)] == [3]


def test_a_mountain_is_pulled_in_by_some_at_a_time(steps: Steps, engine: Engine) -> None:
    many = BATCH * MOST_BATCHES + 100
    with an_hour_ahead(steps):
        steps.receive(*(an_event(n, f"u{n}") for n in range(1, many + 1)))
        steps.sequence(many)
    moved: list[int] = []

    def count(_: object, cursor: object, statement: str, *__: object) -> None:
        if statement.lstrip().startswith("UPDATE open_delivery AS o"):
            moved.append(cursor.rowcount)  # type: ignore[attr-defined]  # a DBAPI cursor

    event.listen(engine, "after_cursor_execute", count)
    horizon = Horizon()
    assert len(pull_in(steps, horizon=horizon)) == BATCH * MOST_BATCHES
    assert len(pull_in(steps, horizon=horizon)) == 100
    assert pull_in(steps, horizon=horizon) == []
    event.remove(engine, "after_cursor_execute", count)
    assert moved == [BATCH] * MOST_BATCHES + [100]


def test_retries_that_are_right_cost_one_page_a_look_and_are_passed_one_page_after_the_other(steps: Steps) -> None:
    steps.receive(*(an_event(n, f"u{n}") for n in range(1, BATCH + 11)))
    steps.sequence(BATCH + 10)
    claimed = claim(steps.database, "r1", [Room(["strict"], BATCH + 10)])
    steps.record([(each, Failed((), "throttled", "429", 60)) for each in claimed])
    with an_hour_ahead(steps):
        steps.receive(an_event(BATCH + 11, "late"))
        steps.sequence()
    horizon = Horizon()
    assert pull_in(steps, horizon=horizon) == []
    assert [one.seq for one in pull_in(steps, horizon=horizon)] == [BATCH + 11]


def test_a_fact_that_nothing_can_read_stops_none_of_the_others(steps: Steps) -> None:
    with an_hour_ahead(steps):
        steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.do(
        a_fact("attempt_failed", due_at="soon"),
        a_fact("attempt_failed", error_class="unknown", error="", due_at="2026-01-01T00:00:00"),
    )
    assert [one.seq for one in pull_in(steps)] == [2]


def test_the_lease_of_a_relay_that_died_then_runs_out(steps: Steps) -> None:
    steps.arrive(an_event(1))
    with an_hour_ahead(steps):
        steps.claim()
    assert [one.column for one in pull_in(steps)] == ["lease_until"]
    steps.advance(14)
    assert steps.reap("r2") == []
    steps.advance(2)
    assert [fact[:2] for fact in steps.reap("r2")] == [(1, "strict")]


def test_a_breaker_and_the_probe_of_one_that_died_are_waited_for_no_longer_than_they_last(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    with an_hour_ahead(steps):
        record(steps.database, GATED, "r1", [(steps.claim(), REFUSED)])
    assert "breaker_until" in [one.column for one in pull_in(steps, GATED)]
    assert read_gates(steps.database).admit([AUDIT]) == "none"
    steps.advance(31)
    assert read_gates(steps.database).admit([AUDIT]) == "probe"
    with an_hour_ahead(steps):
        assert claim_probe(steps.database, "r1", "strict", [AUDIT]) != []
    pull_in(steps, GATED)
    steps.advance(61)
    assert read_gates(steps.database).admit([AUDIT]) == "probe"


def test_a_rate_is_used_up_for_no_longer_than_a_burst_lasts(steps: Steps) -> None:
    (rate_limit,) = ROUTED.rate_limits
    with an_hour_ahead(steps):
        assert [acquire_rate(steps.database, rate_limit), acquire_rate(steps.database, rate_limit)] == [0, 0]
    assert acquire_rate(steps.database, rate_limit) > HOUR
    assert [one.column for one in pull_in(steps, GATED)] == ["rate_used_until"]
    steps.advance(10)
    assert acquire_rate(steps.database, rate_limit) == 0


def test_an_endpoint_is_held_for_no_longer_than_it_may_ask_for(steps: Steps) -> None:
    steps.arrive(an_event(1))
    held = Call("forward", "POST", "https://audit/", "answered", 1.0, 429, hold=RateHold(86400, "Retry-After"))
    with an_hour_ahead(steps):
        record(steps.database, GATED, "r1", [(steps.claim(), Failed((held,), "throttled", "429"))])
    assert pull_in(steps, GATED) != []
    assert read_gates(steps.database).admit([AUDIT]) == "none"
    steps.advance(60)
    assert read_gates(steps.database).admit([AUDIT]) == "all"
    assert pull_in(steps, GATED) == []


def test_an_api_that_sweeps_alone_ask_is_held_for_no_longer_either(steps: Steps) -> None:
    swept = ("api", "swept")
    config = msgspec.structs.replace(CONFIG, apis={"swept": Api(name="swept", base_url="https://swept.example.com")})
    with an_hour_ahead(steps):
        hold(steps.database, HoldRequest(swept, timedelta(hours=1), "Retry-After"))
    assert held_for(steps.database, swept) > HOUR
    assert [one.column for one in Horizon().pull_in(steps.database, config, POLICIES, "r1")] == ["held_until"]
    assert held_for(steps.database, swept) == HOUR


def test_a_sweep_is_due_again_and_one_of_a_relay_that_died_is_waited_for_no_longer_than_its_lease(steps: Steps) -> None:
    ended, died = (Turn("trivore", kind, "r1", every=60, again=60, lease=0) for kind in ("USER", "ACCOUNT"))
    with an_hour_ahead(steps):
        assert take(steps.database, ended)
        fail(steps.database, ended, "503", [])
        assert take(steps.database, died)
    assert sorted(one.column for one in pull_in(steps)) == ["lease_until", "swept_at"]
    assert is_due(steps.database, died)
    steps.advance(61)
    assert is_due(steps.database, ended)


def test_an_alert_is_posted_again_and_a_relay_that_died_is_seen_to_be_gone(steps: Steps, clock: FakeClock) -> None:
    with an_hour_ahead(steps):
        with steps.database.write() as transaction:
            alerts.note(transaction, [Alert("endpoint_retired", "destination audit", firing=True)], clock.moment)
        assert len(alerts.take_unsent(steps.database)) == 1
        nodes.start_node(steps.database, "r9", "host", 1, "0")
    assert sorted(one.column for one in pull_in(steps)) == ["heartbeat_at", "post_after"]
    assert alerts.take_unsent(steps.database) == []
    steps.advance(61)
    assert len(alerts.take_unsent(steps.database)) == 1
    (row,) = steps.rows("SELECT heartbeat_at FROM relay_node")
    assert (clock.moment - row["heartbeat_at"]).total_seconds() == pytest.approx(61)


def test_verify_tells_of_each_and_rebuild_pulls_it_in(steps: Steps) -> None:
    with an_hour_ahead(steps):
        steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
        steps.claim()
        with steps.database.write() as transaction:
            transaction.execute(
                text(
                    "INSERT INTO gate (kind, name, breaker, breaker_until, open_count)"
                    " VALUES ('destination', 'audit', 'open', '2026-01-01 02:00:00.000000Z', 1)"
                )
            )
    found = [(d.finding, d.seq, d.route, d.facts_say.split()[0]) for d in differences(steps.database)]
    assert sorted(found, key=str) == [
        ("ahead", 2, "strict", "due_at"),
        ("ahead", None, None, "breaker_until"),
        ("ahead", None, None, "lease_until"),
    ]
    assert len(mend(steps.database)) == 3
    assert differences(steps.database) == []
    assert due_in(steps) == [(2, 0)]


def test_the_view_of_what_is_stuck_tells_of_it(steps: Steps, clock: FakeClock) -> None:
    clock.moment = SystemClock().now()  # the view asks the database's own clock
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"), an_event(3, "u3"), an_event(4, "u4"))
    steps.attempt(Failed((), "throttled", "429", 86400))
    assert steps.rows("SELECT seq FROM stuck WHERE finding = 'ahead'") == [], "a retry that is far ahead is right"
    steps.advance(HOUR)
    steps.attempt(UNWELL)
    steps.claim()
    steps.arrive(an_event(5, "u5"))
    rows = steps.rows("SELECT seq, why FROM stuck WHERE finding = 'ahead' ORDER BY seq")
    assert [(row["seq"], row["why"].split(",")[0]) for row in rows] == [
        (2, "due further ahead than any rule allows"),
        (3, "leased for longer than any lease lasts"),
        (5, "due further ahead than any rule allows"),
    ]


# --- it jumps forward


class Two:
    """Two relays that look for leases that ran out, each second."""

    def __init__(self, steps: Steps, clock: FakeClock) -> None:
        self.own = Monotonic()
        self.told: list[float] = []
        self.clocks = {name: DatabaseClock(self.own, self.told.append) for name in ("r1", "r2")}
        self._steps, self._clock = steps, clock

    def pass_by(self, seconds: float) -> None:
        """Both clocks go on."""
        self.own.seconds += seconds
        self._clock.advance(seconds)

    def reap(self, name: str, trusted: Sequence[tuple[int, str, int]] = ()) -> list[int]:
        """Rescue deliveries with expired leases as this relay; return their seqs."""
        return [seq for seq, *_ in reap(self._steps.database, POLICIES, name, trusted, self.clocks[name])]


@pytest.fixture
def two(steps: Steps, clock: FakeClock) -> Two:
    made = Two(steps, clock)
    for name in made.clocks:
        made.reap(name)
    return made


def test_a_relay_takes_nothing_back_that_it_trusts_itself(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    mine, lost = steps.claim_due(2, "strict")
    steps.advance(20)
    trusted = [(mine.seq, mine.route, mine.lease_token), (lost.seq, lost.route, lost.lease_token + 1)]
    assert [seq for seq, *_ in reap(steps.database, POLICIES, "r1", trusted)] == [lost.seq]
    assert [recorded.fact for recorded in steps.record([(mine, DONE)])] != [None]


def test_what_others_hold_is_safe_until_they_have_renewed_it_and_what_nobody_renews_is_taken_back(
    steps: Steps, two: Two
) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    kept, lost = steps.claim_due(2, "strict")
    two.pass_by(1)
    two.reap("r2")
    steps.advance(15)
    taken = []
    for second in range(1, 20):
        two.pass_by(1)
        if second % 5 == 0:
            renew(steps.database, [(kept.seq, kept.route, kept.lease_token)])
        taken += two.reap("r2")
    assert taken == [lost.seq]
    assert two.told == [pytest.approx(15)]
    assert [recorded.fact for recorded in steps.record([(kept, DONE)])] != [None]


def test_without_a_step_what_ran_out_is_taken_back_at_once(steps: Steps, two: Two) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    taken = []
    for second in range(1, 18):
        two.pass_by(1)
        taken += [(second, seq) for seq in two.reap("r2")]
    assert taken == [(16, 1)]
    assert two.told == []


def test_a_step_while_the_order_lock_is_waited_for_is_noticed(
    steps: Steps, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    two.pass_by(15.5)
    look = two.clocks["r2"].look

    def jumping(transaction: object) -> object:
        found = look(transaction)  # type: ignore[arg-type]  # a Transaction
        steps.advance(20)
        return found

    monkeypatch.setattr(two.clocks["r2"], "look", jumping)
    assert two.reap("r2") == []
    assert two.told == [pytest.approx(20)]


def test_back_and_right_again_is_a_step_forward(steps: Steps, two: Two) -> None:
    steps.advance(-HOUR)
    two.pass_by(1)
    two.reap("r2")
    steps.arrive(an_event(1))
    steps.claim()
    two.pass_by(1)
    two.reap("r2")
    steps.advance(HOUR)
    two.pass_by(1)
    assert two.reap("r2") == []
    assert two.told == [pytest.approx(-HOUR), pytest.approx(HOUR)]


def test_pulled_in_is_a_fact_that_says_from_when_to_when(steps: Steps, clock: FakeClock) -> None:
    with an_hour_ahead(steps):
        steps.arrive(an_event(1))
    pull_in(steps)
    (row,) = steps.rows("SELECT kind, detail FROM delivery_log")
    assert (row["kind"], row["detail"]) == (
        facts.kind_of(facts.Rescheduled(due_at=clock.moment, was_due_at=clock.moment)),
        {"due_at": time_text(clock.moment), "was_due_at": time_text(clock.moment.replace(hour=1))},
    )


def test_a_fetch_that_a_host_timed_by_a_clock_ahead_covers_nothing_that_is_to_come(
    steps: Steps, clock: FakeClock
) -> None:
    """The relay's host is an hour ahead: its fetch began now, and not in an hour."""
    steps.arrive(an_event(1, routes=["latest"]))
    steps.advance(10)
    delivery = steps.claim("latest")
    an_hour_ahead = clock.now() + timedelta(hours=1)
    outcome = Delivered((), "updated", an_hour_ahead - timedelta(seconds=2))
    steps.advance(5)
    for _ in record_each(
        steps.database, POLICIES, "r1", [(delivery, outcome)], host_now=lambda: clock.now() + timedelta(hours=1)
    ):
        pass
    (lane,) = steps.rows("SELECT fetch_began_at FROM lane")
    assert as_time(lane["fetch_began_at"]) == START + timedelta(seconds=8)
    steps.arrive(an_event(2, second=60, routes=["latest"]))
    assert steps.states() == [(2, "latest", "ready")]
