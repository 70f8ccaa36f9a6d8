"""Everything breaks at random under load; afterwards nothing is lost, and events arrived in order.

The seed is random except in `.ci/run`; FAULTS_SEED repeats a schedule, although the exact times depend on the machine.
FAULTS_MINUTES makes it longer: `make faults`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from inbox.db.order_lock import HELD_SECONDS
from tests.conftest import DRAWS_ANEW
from tests.helpers import checkers
from tests.helpers.checkers import Holding, Interval, Takeover
from tests.proofs.faults import verdict
from tests.proofs.faults.plan import draw
from tests.proofs.faults.rig import CAN_BE_MADE, rig
from tests.proofs.faults.verdict import conclude, do_all, told

SEED_IN_CI = 263617
MINUTES = float(os.environ.get("FAULTS_MINUTES", "0"))
ON_POSTGRES = {
    "kill a relay": 36,
    "freeze a relay": 2,
    "replace a relay": 3,
    "kill a worker": 2,
    "kill all workers": 2,
    "freeze a worker": 2,
    "kill Postgres": 2,
    "freeze Postgres": 1,
    "stop Postgres at once": 1,
    "restart Postgres": 1,
    "kill a backend": 1,
    "fill the disk": 1,
    "cut a commit": 18,
    "verify": 3,
}
_OF_POSTGRES = {"kill a backend", "cut a commit", *(fault for fault in ON_POSTGRES if "Postgres" in fault)}
ON_SQLITE = {"lock SQLite": 1} | {
    fault: max(number // 2, 1) for fault, number in ON_POSTGRES.items() if fault not in _OF_POSTGRES
}
SHOWN = (
    "kills of a relay at work",
    "abandoned",
    "repeats refused",
    "answered 503",
    "answer unknown",
    "calls refused downstream",
    "answers lost downstream",
    "repeated calls",
    "delivered late",
    "takeovers",
    "verified",
)
SHOWN_ON_POSTGRES = ("late results discarded", "commits cut", "commits done without an answer")
"""Shown only on Postgres: on SQLite one relay is frozen once, and its call may be cut before it is sent."""


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.parametrize(
    ("kind", "seconds", "times", "shown"),
    [("postgres", 30, ON_POSTGRES, (*SHOWN, *SHOWN_ON_POSTGRES)), ("sqlite", 16, ON_SQLITE, SHOWN)],
    ids=["postgres", "sqlite"],
)
def test_nothing_is_lost(
    tmp_path: Path, kind: str, seconds: float, times: Mapping[str, int], shown: tuple[str, ...]
) -> None:
    given = os.environ.get("FAULTS_SEED")
    seed = int(given) if given else random.randrange(1_000_000) if DRAWS_ANEW else SEED_IN_CI
    scale = max(1.0, MINUTES * 60 / seconds)
    planned = {fault: round(number * scale) for fault, number in times.items()}
    if not CAN_BE_MADE:
        del planned["fill the disk"]
    streams = draw(seed, seconds * scale, planned)
    with rig(tmp_path, kind, seed, streams=streams, megabytes=round(192 + seconds * scale / 2)) as made:
        verdict = conclude(made, do_all(made, streams))
        assert not verdict.findings, told(made, verdict)
        disk = ("answered 503 while the disk was full",) if CAN_BE_MADE else ()
        assert checkers.find_never_happened(verdict.counts, (*shown, *disk)) == [], told(made, verdict)
        assert verdict.counts["faults"]["kill a relay"] == planned["kill a relay"]


# --- Negative controls of the rig: checkers pass good runs and find bad ones, and faults excuse only their effects


Line = dict[str, Any]


def _line(about: str, **more: object) -> Line:
    """Return a line about an event, given as entity@time."""
    entity, occurred_at = about.split("@")
    return {"at": 0.0, "entity": entity, "occurred_at": occurred_at, "body": about, **more}


def sent(about: str, outcome: str | None, seq: int | None = None, **more: object) -> Line:
    """Return a line of a sender."""
    return _line(about, outcome=outcome, **({} if seq is None else {"seq": seq}), **more)


def came(n: int, seq: int, about: str, **more: object) -> Line:
    """Return a line of a downstream service."""
    return _line(about, **{"n": n, "seq": seq, "run": 0, "attempt": 1, "status": 200, **more})


def fact(seq: int, kind: str, attempt: int = 1, at: float = 0.0, **detail: object) -> Line:
    return {"seq": seq, "kind": kind, "attempt": attempt, "at": at, "relay_node": "n2", "detail": detail}


def did(kind: str, begin: float, end: float, **more: object) -> Line:
    return {"kind": kind, "begin": begin, "end": end, **more}


SENDS = [
    sent("a@1", None), sent("a@1", "unknown"), sent("a@1", None), sent("a@1", "ok", 1), sent("a@2", None),
    sent("a@2", "ok", 2), sent("b@1", None), sent("b@1", "failed", status=503, retry_after="2"),
]  # fmt: skip
FIRST, SECOND = came(1, 1, "a@1"), came(2, 2, "a@2")
CAME = [FIRST, SECOND]
SWAPPED = [came(1, 2, "a@2"), came(2, 1, "a@1")]
AGAIN = came(3, 1, "a@1", attempt=2)
FACTS = [fact(1, "delivered"), fact(2, "delivered")]
STORED = [{"entity": "a", "occurred_at": "1", "seq": 1}, {"entity": "a", "occurred_at": "2", "seq": 2}]
NEW = sent("a@1", "ok", 1, answer="accepted")
BEHIND = [("a", 1, "behind, not marked")]
UNCOUNTED = fact(1, "attempt_failed", 0, counted=False, error_class="lease_lost")
TOLD = fact(1, "attempt_failed", 1, error_class="server_error")
UNKNOWN = fact(1, "attempt_failed", 1, error_class="unknown")
ABANDONED = fact(1, "abandoned", 1, 115.5, relay_node="n1")
SECOND_TRY = [fact(1, "delivered", 2), fact(2, "delivered")]
REPLAYED = [fact(1, "dead", cause="crash_loop"), fact(1, "replayed", 0), fact(1, "delivered", late=True)]


@pytest.mark.parametrize(
    ("checker", "evidence", "findings"),
    [
        (checkers.find_lost, (SENDS, CAME), []),
        (checkers.find_lost, (SENDS, [FIRST]), [("a", "2")]),
        (checkers.find_lost, (SENDS, [FIRST, came(2, 2, "a@2", status=503)]), [("a", "2")]),
        (checkers.find_lost, ([sent("a@9", None), sent("a@9", "unknown")], []), []),
        (checkers.find_phantoms, (SENDS, [*CAME, came(3, 3, "b@1")]), []),
        (checkers.find_phantoms, (SENDS, [*CAME, came(3, 3, "c@1")]), ["c@1"]),
        (checkers.find_two_numbers, (SENDS, STORED), []),
        (checkers.find_two_numbers, ([*SENDS, sent("a@1", "ok", 7)], STORED), [(("a", "1"), [1, 7])]),
        (checkers.find_two_numbers, (SENDS, [*STORED, {**STORED[0], "seq": 3}]), [(("a", "1"), [1, 3])]),
        (checkers.find_unstored, (SENDS, STORED), []),
        (checkers.find_unstored, (SENDS, STORED[1:]), [("a", "1")]),
        (checkers.find_out_of_order, (CAME, FACTS), []),
        (checkers.find_out_of_order, ([*CAME, AGAIN], FACTS), []),
        (checkers.find_out_of_order, (SWAPPED, FACTS), BEHIND),
        (checkers.find_out_of_order, (SWAPPED, [fact(1, "delivered", late=True)]), []),
        (checkers.find_out_of_order, (CAME, [fact(1, "delivered", late=True)]), [("a", 1, "marked, not behind")]),
        (checkers.find_out_of_order, (SWAPPED, [fact(2, "dead"), fact(1, "delivered")]), []),
        (
            checkers.find_out_of_order,
            ([*SWAPPED, came(3, 2, "a@2")], [fact(2, "attempt_failed", 0, counted=False)]),
            [],
        ),
        (checkers.find_out_of_order, ([*SWAPPED, came(3, 2, "a@2")], FACTS), BEHIND),
        (checkers.find_out_of_order, ([*CAME, came(3, 1, "a@1", run=1)], REPLAYED), []),
        (checkers.find_out_of_order, ([came(1, 4, "a@1"), came(2, 3, "a@1")], []), [("a", 3, "behind, not marked")]),
        (checkers.find_repeats, ([came(1, 1, "a@1", status=503), AGAIN, came(4, 1, "a@1", run=1)],), []),
        (checkers.find_repeats, ([*CAME, AGAIN],), [(1, 0, 2)]),
        (checkers.find_unexplained_repeats, (CAME, FACTS), []),
        (checkers.find_unexplained_repeats, ([*CAME, AGAIN], SECOND_TRY), [((1, 0, 1), "no fact")]),
        (checkers.find_unexplained_repeats, ([*CAME, AGAIN], [UNKNOWN, *SECOND_TRY]), []),
        (checkers.find_unexplained_repeats, ([*CAME, AGAIN], [TOLD, *SECOND_TRY]), [((1, 0, 1), "server_error")]),
        (checkers.find_unexplained_repeats, ([came(1, 1, "a@1", sent=False), AGAIN], [TOLD, *SECOND_TRY]), []),
        (checkers.find_unexplained_repeats, ([came(1, 1, "a@1", run=1)], REPLAYED), []),
        (checkers.find_attempts_called_twice, ([*CAME, came(3, 1, "a@1")], FACTS), [(1, 0, 1)]),
        (checkers.find_attempts_called_twice, ([*CAME, came(3, 1, "a@1")], [UNCOUNTED, *FACTS]), []),
        (checkers.find_taken_as_new_twice, ([NEW, {**NEW, "answer": "duplicate"}],), []),
        (checkers.find_taken_as_new_twice, ([NEW, NEW],), [("a", "1")]),
        (checkers.find_improper_refusals, (SENDS,), []),
        (checkers.find_improper_refusals, ([sent("a@1", "failed", status=500, retry_after="2")],), [(500, "2")]),
        (checkers.find_improper_refusals, ([sent("a@1", "failed", status=503, retry_after=None)],), [(503, None)]),
        (checkers.find_unfinished, (STORED, FACTS), []),
        (checkers.find_unfinished, (STORED, FACTS[:1]), [2]),
        (checkers.find_unfinished, (STORED, [*FACTS, fact(1, "delivered")]), [1]),
        (checkers.find_complaints, ({"a.log": "fine\nTraceback (…):\n"},), [("a.log", "Traceback (…):")]),
        (checkers.find_abandoned_without_cause, ([ABANDONED], {"n1": [Interval(100, 100)]}), []),
        (checkers.find_abandoned_without_cause, ([ABANDONED], {"n2": [Interval(100, 100)]}), [(1, "n1")]),
        (checkers.find_abandoned_without_cause, ([ABANDONED], {"n1": [Interval(120, 130)]}), [(1, "n1")]),
        (checkers.find_recorded_by_another, ([{**AGAIN, "caller": "7"}], SECOND_TRY, {"7": "n2"}), []),
        (checkers.find_recorded_by_another, ([{**AGAIN, "caller": "7"}], SECOND_TRY, {"7": "n3"}), [((1, 0, 2), "n2")]),
        (checkers.find_called_without_lease, ([{**FIRST, "at": 115.0}, {**AGAIN, "at": 117.0}], [ABANDONED]), []),
        (checkers.find_called_without_lease, ([{**FIRST, "at": 117.0}], [ABANDONED]), [(1, 0, 1)]),
        (checkers.find_never_happened, ({"kills": 3, "cuts": 0}, ("kills", "cuts")), ["cuts"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_good_run_passes_and_a_bad_one_is_found(
    checker: Callable[..., Sequence[object]], evidence: tuple[object, ...], findings: Sequence[object]
) -> None:
    assert checker(*evidence) == findings


PASSED = [("a", 1, 2)]
HELD = Holding(99.0, "n7", ((2, 0, 1),))


@pytest.mark.parametrize(
    ("acknowledged", "more", "findings"),
    [
        (100.0, {}, PASSED),
        (103.9, {}, []),
        (100.0, {"facts": [fact(1, "dead")]}, []),
        (100.0, {"facts": [fact(2, "dead")]}, PASSED),
        (100.0, {"frozen": [HELD]}, []),
        (100.0, {"frozen": [Holding(103.0, "n7", HELD.calls)]}, PASSED),
        (100.0, {"frozen": [Holding(99.0, "n8", HELD.calls)]}, PASSED),
        (100.0, {"standstills": [Interval(100.1, 103.9)]}, []),
        (100.0, {"standstills": [Interval(96.0, 99.9)]}, PASSED),
    ],
)
def test_a_later_event_may_not_pass(acknowledged: float, more: dict[str, Any], findings: list[object]) -> None:
    sends = [sent("a@1", "ok", 1, at=acknowledged), sent("a@2", "ok", 2, at=1.0)]
    arrivals = [came(1, 2, "a@2", at=104.0, caller="7"), came(2, 1, "a@1", at=105.0, caller="7")]
    assert checkers.find_passed_over(sends, arrivals, more.pop("facts", ()), {"7": "n7"}, **more) == findings


def test_a_takeover_lasts_until_the_next_attempt_is_under_way_without_the_time_of_outages() -> None:
    killed = [Holding(100.0, "n1", ((1, 0, 1),))]
    late = [{**AGAIN, "at": 121.0}]
    measured = checkers.takeovers(killed, late, [ABANDONED, fact(1, "delivered", 2, 121.1)], [])
    assert measured == {(1, 0, 1): Takeover(21.0, 0.0)}
    assert checkers.find_slow_takeovers(measured) == [((1, 0, 1), 21.0)]
    assert checkers.find_slow_takeovers(measured, slowness=1.3) == []
    excused = checkers.takeovers(killed, late, [ABANDONED], [Interval(90.0, 102.0)])
    assert checkers.find_slow_takeovers(excused) == []
    assert checkers.find_slow_takeovers(checkers.takeovers(killed, [], [ABANDONED], [])) == [((1, 0, 1), float("inf"))]
    assert checkers.takeovers(killed, [], [fact(1, "delivered", 1)], []) == {}
    again = [fact(1, "abandoned", 1), fact(1, "abandoned", 2, 131.5), fact(1, "delivered", 3, 132.0)]
    assert checkers.takeovers(killed, [], again, []) == {(1, 0, 1): Takeover(16.5, 0.0)}
    twice = checkers.takeovers(
        [Holding(100.0, "n2", ((1, 0, 2),))], [came(0, 1, "a@1", attempt=3, at=130.0)], again, []
    )
    assert twice[1, 0, 2].crashes == 2
    assert checkers.find_slow_takeovers(twice) == [], "one over which relays died twice may wait for its turn"


def test_faults_excuse_their_effects_alone() -> None:
    faults = [
        did("kill a relay", 5, 5, node="a", held=[[1, 0, 2]]),
        did("kill Postgres", 10, 12, outage=True),
        did("fill the disk", 15, 20, outage=True),
        did("freeze a relay", 30, 50, node="c", held=[[2, 0, 1]]),
        did("freeze Postgres", 60, 61, outage=True),
        did("freeze a worker", 70, 80, outage=False),
    ]
    outages = [Interval(10, 26), Interval(60, 67)]
    assert verdict.outages(faults) == outages
    clocks = [
        did("clock", at, at, at=at, database=f"2026-01-01T00:00:{second:02}Z") for at, second in ((100, 1), (130, 46))
    ]
    assert verdict.find_clock_steps(clocks) == [Interval(100, 130)]
    assert verdict.find_clock_steps([clocks[0], {**clocks[1], "at": 145}]) == []
    assert verdict.standstills(faults) == [Interval(60, 61)]
    assert verdict.holdings(faults) == [Holding(5, "a", ((1, 0, 2),))]
    assert verdict.holdings(faults, "freeze a relay") == [Holding(30, "c", ((2, 0, 1),))]
    (locked,) = verdict.find_locked_by_frozen(faults)
    assert HELD_SECONDS < locked.end - locked.begin < HELD_SECONDS + 2
    assert verdict.troubles(faults, [{"at": 3.0, "pid": 2}], {"a": 1, "b": 2, "c": 3}) == {
        "a": [Interval(5, verdict.FOREVER), *outages],
        "b": [Interval(3.0, 3.0), *outages],
        "c": [Interval(30, 50), *outages],
    }
    assert not verdict.could_tell(did("verify", 11, 13, status=2), faults)
    assert verdict.could_tell(did("verify", 11, 13, status=1), faults)
    assert verdict.could_tell(did("verify", 90, 91, status=2), faults)
