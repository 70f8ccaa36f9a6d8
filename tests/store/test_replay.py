"""Replay, retry, cancel and unblock: the deliveries that a selection means, and their next states."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from inbox.config.model import Api, Config, When
from inbox.config.sync import Fetch, SyncRoute
from inbox.db.reads import Row
from inbox.events.event import Enrolment
from inbox.events.timestamps import as_time
from relay.delivery.outcome import Call, Delivered, Failed
from relay.delivery.policy import policies
from relay.operations.asks import Selection
from relay.store import record
from relay.store.operator import selection, tasks
from relay.store.operator.changes import change
from relay.store.operator.plan import Bound, Plan, preview
from relay.store.operator.selection import Act, Choice, list_keys
from relay.store.overview import read_overview
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, POLICIES, UNWELL, FakeClock, Steps, carry_out
from tests.helpers.storing import START, an_event
from tests.store.conftest import differences

# --- Replay: a person reopens dead or ended deliveries, in their place in the lane


ALL = Selection(everything=True)


def replay_all(steps: Steps, selection: Selection, config: Config = CONFIG) -> int:
    return carry_out(steps.database, config, "replay", selection, why="mended")


def plan(steps: Steps, selection: Selection, config: Config = CONFIG) -> Plan:
    return preview(steps.database, Choice("replay", selection, config), Bound(listed=1000))


def meant(steps: Steps, selection: Selection) -> list[tuple[int, str]]:
    return [(row["seq"], row["route"]) for row in plan(steps, selection).deliveries]


def row_of(steps: Steps, seq: int, route: str = "strict") -> Row:
    (row,) = steps.rows("SELECT * FROM open_delivery WHERE seq = :seq AND route = :route", seq=seq, route=route)
    return row


def test_a_dead_delivery_begins_a_new_run_with_who_and_why(steps: Steps, clock: FakeClock) -> None:
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    steps.advance(6)
    steps.attempt(HOPELESS)
    assert row_of(steps, 1)["attempt"] == 2
    steps.advance(60)
    assert replay_all(steps, Selection(seq=1)) == 1
    row = row_of(steps, 1)
    assert (row["state"], row["run"], row["attempt"], row["due_at"]) == ("ready", 1, 0, clock.moment)
    *_, fact = steps.rows("SELECT * FROM delivery_log ORDER BY id")
    assert (fact["kind"], fact["attempt"], fact["relay_node"], fact["at"]) == ("replayed", 0, None, clock.moment)
    assert fact["detail"] == {"who": "kim", "why": "mended", "command": 1}
    steps.facts_agree()
    again = steps.attempt(DONE)
    assert (again.seq, again.run, again.attempt, steps.states()) == (1, 1, 1, [])
    steps.facts_agree()


def test_a_replayed_event_takes_its_place_in_its_lane(steps: Steps) -> None:
    steps.arrive(*(an_event(n) for n in (1, 2, 3, 4)))
    steps.attempt_each(DONE, HOPELESS)
    assert replay_all(steps, Selection(seq=2)) == 1
    assert steps.states() == [(2, "strict", "ready"), (3, "strict", "waiting"), (4, "strict", "waiting")]
    steps.facts_agree()
    assert [steps.attempt(DONE).seq for _ in range(3)] == [2, 3, 4]


def test_on_a_latest_route_a_newer_one_that_waits_stands_for_it(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2, routes=["latest"]))
    assert replay_all(steps, Selection(seq=1)) == 1
    assert steps.states() == [(2, "latest", "ready")]
    assert steps.kinds() == [(1, "superseded"), (1, "replayed"), (1, "superseded")]
    steps.facts_agree()


@pytest.mark.parametrize("choice", [Choice("replay", Selection(force=True), CONFIG), Choice("retry", ALL, CONFIG)])
def test_an_open_delivery_is_not_replayed_nor_one_that_is_due_or_claimed_retried(steps: Steps, choice: Choice) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"))
    steps.claim()
    steps.receive(an_event(4))
    assert meant(steps, Selection(seqs=(1, 2, 3, 4))) == []
    before = steps.rows("SELECT * FROM open_delivery ORDER BY seq")
    with steps.database.write() as transaction:
        now, keys = transaction.take_order_lock(keeps_payloads=True), [(seq, "strict") for seq in range(1, 6)]
        assert (
            change(transaction, choice, keys, now, who="kim", why="by mistake", command=1, policies=POLICIES).number
            == 0
        )
    assert steps.rows("SELECT * FROM open_delivery ORDER BY seq") == before
    assert steps.kinds() == []


def test_everything_of_a_route_is_what_it_has_taken_and_what_it_would_take_now(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]), an_event(3, "u3"), an_event(4, "u4"))
    steps.attempt_each(DONE, HOPELESS)
    everything = Selection(route="strict", backfill=True)
    states = [(row["seq"], row["state"]) for row in plan(steps, everything).deliveries]
    assert states == [(1, "delivered"), (2, "unrouted"), (3, "dead")]
    assert replay_all(steps, everything) == 3
    assert [each for each in steps.states() if each[1] == "strict"] == [(seq, "strict", "ready") for seq in range(1, 5)]
    assert row_of(steps, 2)["run"] == 1
    steps.facts_agree()
    assert differences(steps.database) == []


def test_what_is_open_on_a_renamed_route_is_delivered_once_on_its_new_one(steps: Steps) -> None:
    strict = CONFIG.routes["strict"]
    renamed = msgspec.structs.replace(CONFIG, routes={"new": msgspec.structs.replace(strict, name="new")})
    steps.arrive(*(an_event(number, f"u{number - (number == 3)}") for number in range(1, 7)))
    steps.attempt_each(DONE, HOPELESS, DONE, HOPELESS)
    in_flight = steps.claim()
    move = Selection(route="new", backfill=True, open_on="strict")

    def look() -> tuple[list[int], list[tuple[str, int]], str | None]:
        planned, seen = plan(steps, move, renamed), read_overview(steps.database, policies(renamed))
        (state,) = [each for each in seen.routes if each.route == "strict"]
        skipped = [(each.why, each.count) for each in planned.skipped]
        return [row["seq"] for row in planned.deliveries], skipped, state.new_name

    assert look() == ([4, 6], [("overtaken", 1), ("in_flight", 1)], "new"), (
        "of u2 the old name has delivered a newer one"
    )
    assert replay_all(steps, move, renamed) == 2
    assert look() == ([], [("overtaken", 1), ("in_flight", 1)], "new"), "twice is once"
    assert replay_all(steps, msgspec.structs.replace(move, force=True), renamed) == 1
    assert look() == ([], [("in_flight", 1)], None), "a cancel now would lose it"
    steps.record([(in_flight, UNWELL)])
    assert look() == ([5], [], "new")
    picky = msgspec.structs.replace(strict, name="new", when=When(entity_type=["GROUP"]))
    planned = plan(steps, move, msgspec.structs.replace(CONFIG, routes={"new": picky}))
    assert (planned.count, [(each.why, each.count) for each in planned.skipped]) == (0, [("not_taken", 1)])
    assert plan(steps, msgspec.structs.replace(move, seqs=(1, 3, 5)), renamed).count == 1
    assert [each for each in steps.states() if each[1] == "new"] == [(seq, "new", "ready") for seq in (2, 4, 6)]


def test_everything_of_a_route_is_without_what_it_would_not_take(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=[]), an_event(2, "u2", routes=[]))
    everything = Selection(route="strict", backfill=True)
    for when, number in (
        (When(entity_type=["USER"]), 2),
        (When(entity_type=["GROUP"]), 0),
        (When(event_type=["UPDATE"], action=["update", "create"]), 2),
        (When(action=["delete"]), 0),
    ):
        picky = msgspec.structs.replace(CONFIG.routes["strict"], when=when)
        assert plan(steps, everything, msgspec.structs.replace(CONFIG, routes={"strict": picky})).count == number
    assert plan(steps, msgspec.structs.replace(everything, since=START + timedelta(seconds=1))).count == 0


# --- A plan names exactly the rows that the command changes


def plan_and_replay(steps: Steps, selection: Selection, config: Config = CONFIG) -> tuple[int | None, int]:
    return plan(steps, selection, config).count, replay_all(steps, selection, config)


def test_a_plan_counts_what_the_replay_takes_up_and_says_which_are_skipped(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"))
    steps.attempt_each(HOPELESS, DONE, HOPELESS)
    planned = plan(steps, ALL)
    assert (planned.count, [(each.why, each.count) for each in planned.skipped]) == (1, [("overtaken", 1)])
    assert [row["seq"] for row in planned.deliveries] == [3]
    (group,) = planned.groups
    assert (group.route, group.state, group.cause, group.count) == ("strict", "dead", "mapping", 1)
    assert replay_all(steps, ALL) == 1


def test_a_plan_skips_deliveries_that_ended_on_a_route_that_was_removed(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["strict", "latest"]))
    steps.attempt(DONE)
    steps.attempt(DONE, "latest")
    without = msgspec.structs.replace(CONFIG, routes={"strict": CONFIG.routes["strict"]})
    planned = plan(steps, Selection(seq=1), without)
    assert (planned.count, [each.why for each in planned.skipped]) == (1, ["route_removed"])
    assert replay_all(steps, Selection(seq=1), without) == 1


def test_an_earlier_batch_may_take_up_the_last_delivered(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of the lane arrived first: its batch takes it up before the older ones are looked at."""
    monkeypatch.setattr(tasks, "BATCH", 1)
    for n, outcome in ((9, DONE), (1, HOPELESS), (2, HOPELESS), (3, HOPELESS)):
        steps.arrive(an_event(n))
        steps.attempt(outcome)
    assert plan_and_replay(steps, Selection(route="strict", backfill=True)) == (4, 4)
    assert [steps.attempt(DONE).seq for _ in range(4)] == [2, 3, 4, 1]
    steps.facts_agree()


def test_one_not_begun_yet_is_delivered_after_an_older_one_that_is_replayed(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt_each(HOPELESS, DONE)
    assert plan_and_replay(steps, ALL) == (0, 0)
    replay_all(steps, Selection(seq=2))
    assert plan_and_replay(steps, ALL) == (1, 1)
    assert [steps.attempt(DONE).seq for _ in range(2)] == [1, 2]


FETCHED = Delivered((), "updated", fetch_began_at=START)
FETCHES = SyncRoute(fetch=Fetch(api="identity", path="/user"))


@pytest.mark.parametrize(("sync", "number"), [(FETCHES, 1), (None, 0)])
def test_an_older_one_is_overtaken_unless_it_fetches(steps: Steps, sync: SyncRoute | None, number: int) -> None:
    """Also if the newer one was fetched before the route was changed."""
    for seq in (1, 2):
        steps.arrive(an_event(seq, routes=["latest"]))
        steps.attempt(FETCHED, "latest")
    route = msgspec.structs.replace(CONFIG.routes["latest"], sync=sync)
    config = msgspec.structs.replace(CONFIG, routes={"latest": route})
    config = msgspec.structs.replace(config, apis={"identity": Api(base_url="https://id.example.com")})
    assert plan_and_replay(steps, Selection(seq=1), config) == (number, number)


@pytest.mark.parametrize("is_retried", [False, True], ids=["in flight", "in retry"])
def test_an_older_one_is_not_sent_behind_a_newer_one_that_has_begun(steps: Steps, is_retried: bool) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(HOPELESS)
    newer = steps.claim()
    if is_retried:
        steps.record([(newer, UNWELL)])
    assert [(each.why, each.count) for each in plan(steps, ALL).skipped] == [("overtaken", 1)]
    assert plan_and_replay(steps, ALL) == (0, 0)
    assert plan_and_replay(steps, msgspec.structs.replace(ALL, force=True)) == (1, 1)
    steps.facts_agree()


def test_an_older_one_is_not_sent_where_the_newer_one_has_lost_its_payload(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    steps.arrive(an_event(2))
    steps.attempt(DONE)
    steps.do("DELETE FROM inbox_payload WHERE seq = 2")
    both = Selection(entity_type="USER", entity_id="u1")
    assert {each.why: each.count for each in plan(steps, both).skipped} == {"overtaken": 1, "payload_gone": 1}
    assert plan_and_replay(steps, both) == (0, 0)


def test_an_event_without_payload_is_not_replayed(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt_each(DONE, DONE)
    steps.do("DELETE FROM inbox_payload WHERE seq = 1")
    assert [each.why for each in plan(steps, Selection(seq=1)).skipped] == ["payload_gone"]
    assert plan_and_replay(steps, Selection(seqs=(1, 2))) == (1, 1)
    assert steps.states() == [(2, "strict", "ready")]


def read_pages(steps: Steps, choice: Choice, most: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    after: int | None = 0
    while after is not None:
        page = selection.read_page(steps.work, choice, after=after, most=most)
        assert page.upto is None or page.upto > after
        found += list_keys(page.rows)
        after = page.upto
    return found


@pytest.mark.parametrize("most", [1, 2, 5, 6])
def test_a_backfill_looks_through_its_source_in_pages(steps: Steps, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(selection, "_CANDIDATES", 1)
    steps.arrive(
        *(msgspec.structs.replace(an_event(n, f"u{n}"), source="trivore" if n % 2 else "billing") for n in range(1, 11))
    )
    steps.record_all(steps.claim_due(10), DONE)
    choice = Choice("replay", Selection(route="strict", backfill=True), CONFIG)
    assert read_pages(steps, choice, most) == [(seq, "strict") for seq in (1, 3, 5, 7, 9)]


# --- Retry: a person makes attempts that wait due at once; nothing else about them changes


ANSWERED_503 = Failed(
    (Call("forward", "POST", "https://audit.example.com", "answered", 1.0, status=503),), "server_error", "Answered 503"
)
NO_ANSWER = Failed((Call("forward", "POST", "https://audit.example.com", "unknown", 1.0),), "unknown", "no answer")


def retry_plan(steps: Steps, selection: Selection) -> Plan:
    return preview(steps.database, Choice("retry", selection, CONFIG), Bound(listed=1000))


def retry_all(steps: Steps, selection: Selection) -> int:
    planned = retry_plan(steps, selection).count
    changed = carry_out(steps.database, CONFIG, "retry", selection, why="the CRM is back")
    assert changed == planned
    return changed


def test_a_waiting_attempt_is_due_at_once_and_keeps_its_attempts_and_its_lane(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    steps.attempt(UNWELL)
    assert steps.claim_due() == []
    before = row_of(steps, 1)
    assert retry_all(steps, Selection(seq=1)) == 1
    assert row_of(steps, 1) == {**before, "due_at": steps.clock.moment}
    assert steps.states() == [(1, "strict", "ready"), (2, "strict", "waiting")]
    (fact,) = steps.rows("SELECT detail, relay_node FROM delivery_log WHERE kind = 'rescheduled'")
    assert (fact["detail"]["who"], fact["detail"]["why"], fact["relay_node"]) == ("kim", "the CRM is back", None)
    assert as_time(fact["detail"]["was_due_at"]) == before["due_at"]
    assert differences(steps.database) == []
    assert steps.attempt(DONE).attempt == 2
    assert steps.states() == [(2, "strict", "ready")]
    steps.facts_agree()


OF_BOTH = (Selection(cause="server_error"), Selection(status=503), Selection(error="ANSWERED"))


def test_each_filter_picks_among_the_waiting(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2", routes=["latest"]))
    steps.record_all(steps.claim_due(), ANSWERED_503)
    steps.advance(2)
    later = steps.clock.moment
    steps.arrive(an_event(3, "u3"))
    steps.record_all(steps.claim_due(), NO_ANSWER)
    one = Selection(entity_type="USER", entity_id="u3")
    picked: dict[tuple[int, ...], list[Selection]] = {
        (): [Selection(source="github"), Selection(event_type="DELETE"), Selection(status=500), Selection(error="%")],
        (1, 2, 3): [ALL, Selection(source="trivore"), Selection(destination="audit"), Selection(event_type="UPDATE")],
        (1, 2): [*OF_BOTH, Selection(until=later)],
        (3,): [one, Selection(cause="unknown"), Selection(since=later)],
        (2,): [Selection(route="latest")],
        (1,): [Selection(cause="server_error", route="strict")],
    }
    for found, chosen in ((found, each) for found, those in picked.items() for each in those):
        planned = retry_plan(steps, chosen)
        assert tuple(row["seq"] for row in planned.deliveries) == found, chosen
        assert planned.count == len(found)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 12])
def test_pages_have_each_selected_delivery_once(steps: Steps, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Whole events, whatever stands between them, and however few are looked up together."""
    monkeypatch.setattr(selection, "_CANDIDATES", 2)
    monkeypatch.setattr(selection, "_MOST_LOOK_UPS", 2)
    monkeypatch.setattr(record, "OWN_TRANSACTION", 100)  # no breaker opens between the two routes
    steps.arrive(*(an_event(n, f"u{n}", routes=["latest", "strict"]) for n in range(1, 11)))
    steps.record([(claimed, NO_ANSWER if claimed.seq % 3 else ANSWERED_503) for claimed in steps.claim_due()])
    found = read_pages(steps, Choice("retry", Selection(cause="server_error"), CONFIG), most)
    assert found == [(seq, route) for seq in (3, 6, 9) for route in ("latest", "strict")]


# --- Cancel and unblock: a person ends deliveries, or lets a lane go on past its dead head


def cancel_all(steps: Steps, selection: Selection) -> int:
    return carry_out(steps.database, CONFIG, "cancel", selection, who="ann", why="a test account")


def unblock_all(steps: Steps, selection: Selection) -> int:
    return carry_out(steps.database, CONFIG, "unblock", selection, who="ann", why="mended by hand")


def test_a_cancelled_one_has_ended_and_the_next_of_its_lane_goes_on(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    assert cancel_all(steps, Selection(seq=1)) == 1
    assert steps.states() == [(2, "strict", "ready"), (3, "strict", "ready")]
    (fact,) = steps.rows("SELECT kind, relay_node, detail FROM delivery_log")
    assert fact == {
        "kind": "cancelled",
        "relay_node": None,
        "detail": {"who": "ann", "why": "a test account", "command": 1},
    }
    assert differences(steps.database) == []


def test_a_lane_whose_head_and_next_are_cancelled_together_goes_on_with_what_is_left(steps: Steps) -> None:
    """As on a route with `lane = "route"`, of which one entity is cancelled."""
    of_the_route = {"enrolments": (Enrolment("strict", "*"),)}
    events = (an_event(1), an_event(2), an_event(3, "u2"))
    steps.arrive(*(msgspec.structs.replace(event, **of_the_route) for event in events))
    assert cancel_all(steps, Selection(entity_type="USER", entity_id="u1")) == 2
    assert steps.states() == [(3, "strict", "ready")]


def test_one_that_a_relay_works_on_is_left_as_it_is(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    working = steps.claim()
    assert cancel_all(steps, Selection(entity_type="USER", entity_id="u1")) == 1
    (recorded,) = steps.record([(working, DONE)])
    assert recorded.fact is not None
    assert steps.kinds() == [(2, "cancelled"), (1, "delivered")]


def test_a_blocked_lane_goes_on_past_its_head_which_stays_dead(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    assert steps.states() == [(1, "blocking", "blocked"), (2, "blocking", "waiting")]
    assert unblock_all(steps, Selection(route="blocking")) == 1
    assert steps.states() == [(1, "blocking", "dead"), (2, "blocking", "ready")]
    assert unblock_all(steps, ALL) == 0
    assert differences(steps.database) == []


# --- Selections that name several events, or one state: exactly those are planned and changed


ROUTES = ["strict", "blocking"]


@pytest.fixture
def some(steps: Steps) -> Steps:
    """Events 1 to 4 are dead on `strict` and blocking on `blocking`; 5 waits for a retry, 6 is delivered, 7 not begun."""
    steps.arrive(*(an_event(n, f"u{n}", routes=ROUTES) for n in range(1, 5)))
    for route in ROUTES:
        steps.record_all(steps.claim_due(10, route), HOPELESS)
    steps.arrive(an_event(5, "u5"))
    steps.record_all(steps.claim_due(10), UNWELL)
    steps.arrive(an_event(6, "u6"))
    steps.record_all(steps.claim_due(10), DONE)
    steps.arrive(an_event(7, "u7"))
    return steps


def plan_both_ways(steps: Steps, act: Act, chosen: Selection) -> list[tuple[int, str]]:
    """The deliveries of both kinds of plan, which agree."""
    choice = Choice(act, chosen, CONFIG)
    assert choice.mistake is None
    whole = preview(steps.database, choice, Bound(listed=100))
    assert preview(steps.database, choice, Bound(100, listed=100)) == whole
    assert whole.count == len(whole.deliveries)
    return [(row["seq"], row["route"]) for row in whole.deliveries]


def both(*seqs: int) -> list[tuple[int, str]]:
    return [(seq, route) for seq in seqs for route in sorted(ROUTES)]


STRICT = [(seq, "strict") for seq in range(1, 8)]
CASES: list[tuple[Act, dict[str, Any], list[tuple[int, str]]]] = [
    ("replay", {"seqs": (4, 2, 99)}, both(2, 4)),
    ("replay", {"seqs": (2, 6)}, [*both(2), (6, "strict")]),
    ("replay", {"seqs": (2, 4, 6), "route": "strict"}, [STRICT[1], STRICT[3], STRICT[5]]),
    ("replay", {"seqs": (2, 6), "state": "delivered"}, [(6, "strict")]),
    ("replay", {"seqs": (1, 6), "route": "strict", "backfill": True, "force": True}, [(1, "strict"), (6, "strict")]),
    ("replay", {"state": "dead"}, STRICT[:4]),
    ("replay", {"state": "blocked"}, [(seq, "blocking") for seq in range(1, 5)]),
    ("cancel", {"seqs": (1, 5, 6, 7)}, [*both(1), (5, "strict"), (7, "strict")]),
    ("cancel", {"state": "dead", "seqs": (2, 5)}, [(2, "strict")]),
    ("cancel", {"state": "dead", "cause": "mapping", "error": "email"}, STRICT[:4]),
    ("cancel", {"state": "blocked", "destination": "audit"}, [(seq, "blocking") for seq in range(1, 5)]),
    ("cancel", {"state": "retrying"}, [(5, "strict")]),
    ("cancel", {"state": "ready"}, [(5, "strict"), (7, "strict")]),
    ("retry", {"seqs": (1, 5, 7)}, [(5, "strict")]),
    ("unblock", {"seqs": (3,)}, [(3, "blocking")]),
    ("replay", {"deliveries": ("6/strict", "2/blocking", "4/strict", "2/none")}, [(2, "blocking"), *STRICT[3:6:2]]),
    ("cancel", {"deliveries": ("1/blocking", "5/strict", "2/strict")}, [(1, "blocking"), *STRICT[1:5:3]]),
    (
        "replay",
        {"deliveries": ("1/strict", "6/strict", "2/blocking"), "route": "strict", "backfill": True},
        STRICT[:6:5],
    ),
    ("retry", {"deliveries": ("1/strict", "5/strict")}, [(5, "strict")]),
]


@pytest.mark.usefixtures("some")
def test_exactly_those_are_planned(steps: Steps) -> None:
    for act, given, expected in CASES:
        assert plan_both_ways(steps, act, Selection(**given)) == expected, (act, given)


ENDED_AGAIN: list[dict[str, Any]] = [
    {"seqs": (2, 4, 6), "route": "strict"},
    {"deliveries": ("2/strict", "4/strict", "6/strict")},
    {"entity_type": "USER", "entity_id": "u6"},
    {"route": "strict", "seqs": (2, 4, 6), "backfill": True, "force": True},
    {"state": "dead"},
]


def newest_fact(steps: Steps) -> int:
    return int(steps.rows("SELECT max(id) AS id FROM delivery_log")[0]["id"])


@pytest.mark.parametrize("given", ENDED_AGAIN, ids=[" ".join(given) for given in ENDED_AGAIN])
def test_one_that_has_ended_again_since_the_plan_is_left_alone(some: Steps, given: dict[str, Any]) -> None:
    """Two plan the same before a relay takes up the first command, which ends again all that it takes up."""
    chosen = Selection(**given, until_fact=newest_fact(some))
    assert replay_all(some, chosen) > 0
    for _ in range(2):
        some.record_all(some.claim_due(10), HOPELESS)
    assert replay_all(some, chosen) == 0
    assert plan_both_ways(some, "replay", chosen) == []


def test_one_that_ends_again_while_a_batch_is_read_is_left_alone(some: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Selection(seqs=(6,), until_fact=newest_fact(some))
    real = selection.read_page

    def overtaken(*given: Any, **named: Any) -> Any:  # noqa: ANN401  # handed through
        page = real(*given, **named)
        monkeypatch.undo()
        assert replay_all(some, chosen) == 1
        some.record_all(some.claim_due(10), DONE)
        return page

    monkeypatch.setattr(selection, "read_page", overtaken)
    assert replay_all(some, chosen) == 0
