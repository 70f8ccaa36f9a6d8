"""Sequence, claim, record and rescue: relays beside each other, that crash, and beside a clock that is set."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import event

from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Delivered, Delivery, Outcome
from relay.delivery.policy import CRASHES_UNTIL_DEAD, LEFT_TO_OTHERS
from relay.operations.asks import Selection
from relay.store.claim import FreeCapacity, claim, claim_suspect
from relay.store.database import Database
from relay.store.deliveries import lease_key_of
from relay.store.leases import LEASE_SECONDS, DatabaseClock, give_back, renew, rescue_expired
from relay.store.nodes import describe
from relay.store.record import record as record_parts
from relay.store.sequence import read_heads, sequence
from relay.store.work import Work
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.relaying import (
    CONFIG,
    DONE,
    POLICIES,
    UNWELL,
    FakeClock,
    Monotonic,
    Steps,
    carry_out,
    record,
    work_of,
)
from tests.helpers.storing import START, an_event
from tests.helpers.waiting import be_patient
from tests.store.conftest import differences
from tests.store.test_replay import replay_all

# --- Sequence, claim and record, on both databases


LATEST = ["latest"]


def test_a_lane_that_fails_does_not_hold_up_another(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "a"), an_event(3, "b"))
    first, other = steps.claim_due()
    steps.record([(first, UNWELL), (other, DONE)])
    assert steps.states() == [(1, "strict", "ready"), (2, "strict", "waiting")]
    assert steps.claim_due() == []


def test_an_event_on_a_route_of_another_configuration_is_left_to_a_relay_that_has_it(steps: Steps) -> None:
    """By another policy nothing of it would be dropped, and an older event would follow a newer one."""
    steps.receive(*(an_event(number, routes=LATEST) for number in (1, 2)), an_event(3))
    without = {"strict": POLICIES["strict"]}
    while sequence(work_of(steps.database, without)):
        sequence(work_of(steps.database, without, node="r2"))
    assert steps.states() == [(1, "latest", "received"), (2, "latest", "received"), (3, "strict", "ready")]
    steps.sequence()
    assert steps.states() == [(2, "latest", "ready"), (3, "strict", "ready")]


def test_a_renewed_lease_is_not_rescued(steps: Steps) -> None:
    steps.arrive(an_event(1))
    held = lease_key_of(steps.claim())
    steps.advance(10)
    assert renew(steps.database, [held]) == {held}
    steps.advance(10)
    assert steps.rescue("r2") == []


def give_one_back(steps: Steps, arrived: int, meanwhile: int, route: str) -> None:
    """An event arrives and is claimed; another one arrives; the first is given back."""
    steps.arrive(an_event(arrived, routes=[route]))
    held = lease_key_of(steps.claim(route))
    steps.arrive(an_event(meanwhile, routes=[route]))
    assert give_back(steps.work, [held]) == ({held}, 1)


def test_an_older_event_that_came_meanwhile_goes_before_one_that_is_given_back(steps: Steps) -> None:
    """Giving back uses no attempt."""
    give_one_back(steps, 2, 1, "strict")
    assert steps.states() == [(1, "strict", "waiting"), (2, "strict", "ready")]
    assert steps.kinds() == []
    assert [(again.seq, again.attempt) for again in (steps.attempt(DONE), steps.attempt(DONE))] == [(2, 1), (1, 1)]


def test_an_older_event_goes_first_by_the_moving_clock_of_the_database_as_well(steps: Steps) -> None:
    steps.database = Database(steps.database.engine)
    give_one_back(steps, 2, 1, "strict")
    assert steps.states() == [(1, "strict", "waiting"), (2, "strict", "ready")]


def test_in_latest_one_that_is_given_back_is_folded_into_a_newer_one_that_waits(steps: Steps) -> None:
    give_one_back(steps, 1, 2, "latest")
    assert steps.states() == [(2, "latest", "ready")]
    assert steps.kinds() == [(1, "superseded")]


def test_an_older_claims_result_is_discarded_though_it_is_handed_in_with_the_present_ones(steps: Steps) -> None:
    steps.arrive(an_event(1))
    first = steps.attempt(UNWELL)
    steps.advance(10)
    recorded = steps.record([(first, UNWELL), (steps.claim(), DONE)])
    assert [result.fact is None for result in recorded] == [True, False]
    assert steps.kinds() == [(1, "attempt_failed"), (1, "delivered")]


# --- Several relays on one database, with nothing between them but the database


def one_round(database: Database, name: str, route: str, rng: random.Random) -> int:
    """Every step once; some attempts fail, some are given back. Returns how much there was to do."""
    moved = sequence(work_of(database, node=name), batch=20)
    claimed = claim(work_of(database, node=name), [FreeCapacity([route], 8)])
    kept = [delivery for delivery in claimed if rng.random() > 0.05]
    give_back(work_of(database, node=name), [lease_key_of(delivery) for delivery in claimed if delivery not in kept])
    record(work_of(database, node=name), [(delivery, an_outcome(rng)) for delivery in kept])
    rescue_expired(work_of(database, node=name))
    return moved + len(claimed)


def an_outcome(rng: random.Random) -> Outcome:
    return UNWELL if rng.random() < 0.1 else DONE


def test_two_relays_share_two_hundred_routes_in_few_transactions(steps: Steps, clock: FakeClock) -> None:
    routes = [f"r{number:03}" for number in range(200)]
    known = dict.fromkeys(routes, POLICIES["strict"])
    steps.receive(*(an_event(n, "u1", routes=routes) for n in range(1, 3)))
    commits: list[object] = []
    event.listen(steps.database.engine, "commit", commits.append)

    def work(name: str) -> int:
        database, recorded = Database(steps.database.engine, clock), 0
        while sequence(work_of(database, known, node=name)):
            pass
        while claimed := claim(work_of(database, node=name), [FreeCapacity(routes, 64)]):
            recorded += len(record(work_of(database, known, node=name), [(delivery, DONE) for delivery in claimed]))
        return recorded

    with ThreadPoolExecutor(2) as pool:
        recorded = sum(pool.map(work, "ab"))
    recorded += work("a")  # heads that one relay has made after the other one's last look
    assert (recorded, steps.states()) == (2 * len(routes), [])
    assert len(commits) < len(routes)
    steps.facts_agree()


@ON_POSTGRES
def test_a_settle_holds_up_no_renewal_of_its_head_and_locks_one_that_is_ready(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    lease, other = lease_key_of(steps.claim()), work_of(steps.database, node="r2")
    be_patient(steps.database.engine)
    with steps.database.write() as settling:
        settling.take_order_lock()
        heads = read_heads(settling, [("strict", "USER|a"), ("strict", "USER|b")])
        assert sorted((head.seq, head.state) for head in heads) == [(1, State.IN_FLIGHT), (2, State.READY)]
        assert renew(steps.database, [lease]) == {lease}
        assert claim(other, [FreeCapacity(["strict"], 8)]) == []
    assert [delivery.seq for delivery in claim(other, [FreeCapacity(["strict"], 8)])] == [2]


# --- A delivery that kills the process which works on it is set aside; those that were merely in hand with it are not


_numbers = count(1)


class Relays:
    """Relay processes that come and go."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def start(self) -> Work:
        work = work_of(self._steps.database, node=f"node-{next(_numbers)}")
        describe(work, "host", 1, "0")
        return work

    def claim(self, work: Work, route: str = "strict") -> list[Delivery]:
        return [*claim(work, [FreeCapacity([route], 10)]), *claim_suspect(work, [route])]

    def crash_over(self, route: str = "strict", times: int = 1) -> list[int]:
        """Let `times` processes claim and die, and rescue their leases; return the seqs of the last one."""
        claimed: list[Delivery] = []
        for _ in range(times):
            claimed = self.claim(self.start(), route)
            self.leases_run_out()
        return [delivery.seq for delivery in claimed]

    def leases_run_out(self) -> None:
        self._steps.advance(LEASE_SECONDS + 1)
        self._steps.rescue(self.start().node)


@pytest.fixture
def relays(steps: Steps) -> Relays:
    return Relays(steps)


def test_a_delivery_that_was_abandoned_three_times_in_a_row_is_dead(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1), an_event(2))
    for _ in range(CRASHES_UNTIL_DEAD):
        assert relays.crash_over() == [1]
    (row,) = steps.rows("SELECT seq, state, cause, attempts FROM dead_letter")
    assert tuple(row.values()) == (1, "dead", "crash_loop", CRASHES_UNTIL_DEAD)
    assert steps.kinds() == [(1, "abandoned"), (1, "abandoned"), (1, "dead")]
    assert steps.states()[-1] == (2, "strict", "ready")
    steps.facts_agree()


WITHOUT = {name: known for name, known in POLICIES.items() if name != "blocking"}


def test_a_relay_that_lacks_the_route_leaves_it_to_one_that_has_it(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, routes=["blocking"]))
    relays.crash_over("blocking", CRASHES_UNTIL_DEAD - 1)
    relays.claim(relays.start(), "blocking")
    steps.advance(LEASE_SECONDS + 1)
    assert rescue_expired(work_of(steps.database, WITHOUT, node="other")) == []
    steps.rescue()
    assert steps.states() == [(1, "blocking", "blocked"), (2, "blocking", "waiting")]


def test_a_lease_of_a_route_that_no_relay_has_is_taken_back_late(steps: Steps, relays: Relays) -> None:
    """And nothing is given up."""
    steps.arrive(an_event(1, routes=["blocking"]))
    relays.crash_over("blocking", CRASHES_UNTIL_DEAD - 1)
    relays.claim(relays.start(), "blocking")
    steps.advance(LEFT_TO_OTHERS.total_seconds() + LEASE_SECONDS + 1)
    (taken,) = rescue_expired(work_of(steps.database, WITHOUT, node="other"))
    assert isinstance(taken[2], facts.Abandoned)
    assert steps.states() == [(1, "blocking", "ready")]
    steps.facts_agree()


def test_an_attempt_that_came_to_an_end_breaks_the_row(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    for _ in range(CRASHES_UNTIL_DEAD):
        relays.crash_over(times=CRASHES_UNTIL_DEAD - 1)
        work = relays.start()
        record(work, [(delivery, UNWELL) for delivery in relays.claim(work)])
        steps.advance(100_000)
    assert steps.rows("SELECT state, crashes FROM open_delivery") == [{"state": "ready", "crashes": 0}]


def test_those_that_were_in_hand_with_the_culprit_come_through_alone(steps: Steps, relays: Relays) -> None:
    """u2 kills every process that works on it. After two crashes each is tried by itself, and only u2 crashes again."""
    steps.arrive(*(an_event(n, f"u{n}") for n in (1, 2, 3)))
    for _ in range(CRASHES_UNTIL_DEAD - 1):
        claim(relays.start(), [FreeCapacity(["strict"], 10)])
        relays.leases_run_out()
    assert claim(relays.start(), [FreeCapacity(["strict"], 10)]) == []
    tried = []
    for _ in range(3):
        work = relays.start()
        (suspect,) = claim_suspect(work, ["strict"])
        tried.append((suspect.entity_id, suspect.is_suspect))
        relays.leases_run_out() if suspect.entity_id == "u2" else record(work, [(suspect, DONE)])
    assert sorted(tried) == [("u1", True), ("u2", True), ("u3", True)]
    assert steps.states() == [(2, "strict", "dead")]
    assert claim_suspect(relays.start(), ["strict"]) == []


def test_a_suspect_that_is_given_back_stays_one(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    relays.crash_over(times=CRASHES_UNTIL_DEAD - 1)
    work = relays.start()
    give_back(work, [lease_key_of(suspect) for suspect in claim_suspect(work, ["strict"])])
    assert claim(work, [FreeCapacity(["strict"], 10)]) == []
    assert len(claim_suspect(work, ["strict"])) == 1


def test_a_newer_event_that_takes_over_a_suspect_is_suspect_too(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    relays.crash_over("latest", CRASHES_UNTIL_DEAD - 1)
    steps.arrive(an_event(2, routes=["latest"]))
    assert steps.rows("SELECT seq, crashes FROM open_delivery") == [{"seq": 2, "crashes": CRASHES_UNTIL_DEAD - 1}]
    steps.facts_agree()
    relays.crash_over("latest")
    assert steps.states() == [(2, "latest", "dead")]


def test_a_replay_begins_without_suspicion(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    relays.crash_over(times=CRASHES_UNTIL_DEAD)
    assert replay_all(steps, Selection(cause="crash_loop")) == 1
    assert steps.rows("SELECT state, crashes, run FROM open_delivery") == [{"state": "ready", "crashes": 0, "run": 1}]


def test_a_relay_that_has_entered_itself_and_was_not_told_so_enters_itself_again(steps: Steps) -> None:
    """The answer to the commit is lost when Postgres restarts: then it tries again."""
    for _ in range(2):
        describe(work_of(steps.database, node="r1"), "host", 1, "0")
    assert steps.rows("SELECT id FROM relay_node") == [{"id": "r1"}]


# --- The database's clock runs ahead and is put right, goes back, or jumps forward: on both databases, to the second


HOUR = 3600.0


@contextlib.contextmanager
def an_hour_ahead(steps: Steps) -> Iterator[None]:
    """The database's clock runs ahead, and is put right."""
    steps.advance(HOUR)
    yield
    steps.advance(-HOUR)


# --- it ran ahead, and is put right


def test_deliveries_it_made_due_wait_until_an_operator_retries_them(steps: Steps) -> None:
    with an_hour_ahead(steps):
        steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    assert steps.claim_due(9, "strict") == []
    carry_out(steps.database, CONFIG, "retry", Selection(route="strict"), why="the clock was wrong")
    assert [delivery.seq for delivery in steps.claim_due(9, "strict")] == [1, 2]
    steps.facts_agree()
    assert differences(steps.database) == []


def test_the_lease_of_a_relay_that_died_then_is_rescued(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    with an_hour_ahead(steps):
        steps.claim()
    steps.claim()
    assert [fact[:2] for fact in steps.rescue("r2")] == [(1, "strict")]


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

    def rescue(self, name: str, trusted: Sequence[tuple[int, str, int]] = ()) -> list[int]:
        """Rescue deliveries with expired leases as this relay; return their seqs."""
        return [seq for seq, *_ in rescue_expired(work_of(self._steps.database, node=name), trusted, self.clocks[name])]


@pytest.fixture
def two(steps: Steps, clock: FakeClock) -> Two:
    made = Two(steps, clock)
    for name in made.clocks:
        made.rescue(name)
    return made


def test_a_relay_takes_nothing_back_that_it_trusts_itself(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    mine, lost = steps.claim_due(2, "strict")
    steps.advance(20)
    trusted = [(mine.seq, mine.route, mine.lease_token), (lost.seq, lost.route, lost.lease_token + 1)]
    assert [seq for seq, *_ in rescue_expired(steps.work, trusted)] == [lost.seq]
    assert [recorded.fact for recorded in steps.record([(mine, DONE)])] != [None]


@pytest.mark.parametrize("seconds", [15, -HOUR])
def test_after_a_jump_others_have_time_to_renew(steps: Steps, two: Two, seconds: float) -> None:
    """A delivery that they hold is safe until they have renewed its lease; without a renewal it is rescued."""
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    kept, lost = steps.claim_due(2, "strict")
    two.pass_by(1)
    two.rescue("r2")
    steps.advance(seconds)
    taken = []
    for second in range(1, 20):
        two.pass_by(1)
        if second % 5 == 0:
            renew(steps.database, [lease_key_of(kept)])
        taken += two.rescue("r2")
    assert taken == [lost.seq]
    assert two.told == [pytest.approx(seconds)]
    assert [recorded.fact for recorded in steps.record([(kept, DONE)])] != [None]


def test_without_a_step_what_ran_out_is_taken_back_at_once(steps: Steps, two: Two) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    taken = []
    for second in range(1, 18):
        two.pass_by(1)
        taken += [(second, seq) for seq in two.rescue("r2")]
    assert taken == [(16, 1)]
    assert two.told == []


def test_a_jump_during_the_wait_for_a_lock_is_seen(steps: Steps, two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    two.pass_by(15.5)
    read = two.clocks["r2"].read

    def jumping(transaction: object) -> object:
        found = read(transaction)  # type: ignore[arg-type]  # a Transaction
        steps.advance(20)
        return found

    monkeypatch.setattr(two.clocks["r2"], "read", jumping)
    assert two.rescue("r2") == []
    assert two.told == [pytest.approx(20)]


def test_a_fetch_timed_by_a_clock_ahead_covers_nothing_to_come(steps: Steps, clock: FakeClock) -> None:
    """The relay's host is an hour ahead: its fetch began now, and not in an hour."""

    def host_now() -> datetime:
        return clock.now() + timedelta(hours=1)

    steps.arrive(an_event(1, routes=["latest"]))
    steps.advance(10)
    delivery = steps.claim("latest")
    outcome = Delivered((), "updated", host_now() - timedelta(seconds=2))
    steps.advance(5)
    list(record_parts(steps.work, [(delivery, outcome)], host_now=host_now))
    (lane,) = steps.rows("SELECT fetch_began_at FROM lane")
    assert as_time(lane["fetch_began_at"]) == START + timedelta(seconds=8)
    steps.arrive(an_event(2, second=60, routes=["latest"]))
    assert steps.states() == [(2, "latest", "ready")]
