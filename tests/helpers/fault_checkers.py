"""Invariants of a run during which things were broken on purpose. As in `tests.helpers.checkers`, each returns evidence.

All moments are monotonic seconds, those of facts too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

from tests.helpers import checkers
from tests.helpers.checkers import Call, Line, attempts_of

LEASE_SECONDS = 15.0


class Interval(msgspec.Struct, frozen=True):
    """A stretch of time."""

    begin: float
    end: float


class Takeover(msgspec.Struct, frozen=True):
    """Wait of a delivery for its next attempt after its relay's end, and the part of it without a database."""

    seconds: float
    without_database: float
    crashes: int = 1
    """Number of its attempts in a row that had ended so; after some, it is suspected to be the cause."""


class Holding(msgspec.Struct, frozen=True):
    """Calls that a relay had in hand when it was killed or frozen."""

    at: float
    node: str
    calls: tuple[Call, ...] = ()


def takeovers(
    holdings: Iterable[Holding], arrivals: Iterable[Line], facts: Sequence[Line], outages: Iterable[Interval]
) -> dict[Call, Takeover]:
    """Of each attempt that ended with its process: after how long the next was under way.

    The next attempt is seen by its call; or, when that one came to nothing either, by the end of its lease, which it
    must have got before.
    """
    recorded = {call for call, fact in attempts_of(facts) if fact["kind"] != "abandoned"}
    lost_again: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for (seq, run, attempt), fact in attempts_of(facts):
        if fact["kind"] in {"abandoned", "dead"}:
            lost_again[seq, run].append((attempt, fact["at"] - LEASE_SECONDS))
    called: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for line in arrivals:
        called[line["seq"], line["run"]].append((line["attempt"], line["at"]))
    abandoned = {call for call, fact in attempts_of(facts) if fact["kind"] in {"abandoned", "dead"}}
    closed = list(outages)
    measured: dict[Call, Takeover] = {}
    for holding in holdings:
        for call in set(holding.calls) - recorded:
            seq, run, attempt = call
            begun = [at for number, at in called[seq, run] + lost_again[seq, run] if number > attempt]
            until = min(begun, default=float("inf"))
            without = sum(_overlap(holding.at, until, outage) for outage in closed)
            measured[call] = Takeover(until - holding.at, without, _in_a_row(call, abandoned))
    return measured


def slow_takeovers(
    measured: Mapping[Call, Takeover], within: float = 20.0, suspects_within: float = 60.0, slowness: float = 1.0
) -> list[tuple[Call, float]]:
    """List those that took longer, not counting time without a database.

    The part of a limit that is beyond a lease may last `slowness` times as long.

    A delivery whose relay has died twice in a row waits for its turn: a relay tries one such at a time.
    """

    def allowed(takeover: Takeover) -> float:
        return LEASE_SECONDS + slowness * ((within if takeover.crashes < 2 else suspects_within) - LEASE_SECONDS)

    return sorted(
        (call, round(takeover.seconds, 1))
        for call, takeover in measured.items()
        if takeover.seconds - takeover.without_database > allowed(takeover)
    )


def abandoned_without_cause(facts: Iterable[Line], troubles: Mapping[str, Sequence[Interval]]) -> list[tuple[int, str]]:
    """(seq, relay node) of leases that ran out although nothing had happened to their holder at the time.

    `troubles` tells of each node when something was done to it; a lease that runs out then, or until a lease's time
    and a little later, is explained.
    """
    evidence = []
    for fact in facts:
        if fact["kind"] == "abandoned":
            node = fact["detail"]["relay_node"]
            when = (Interval(trouble.begin, trouble.end + LEASE_SECONDS + 7) for trouble in troubles.get(node, ()))
            if not any(trouble.begin <= fact["at"] <= trouble.end for trouble in when):
                evidence.append((fact["seq"], node))
    return evidence


def recorded_by_another(
    arrivals: Iterable[Line], facts: Iterable[Line], callers: Mapping[str, str]
) -> list[tuple[Call, str]]:
    """Attempts whose outcome was recorded by another relay than the one that made the call.

    `callers` tells which relay node each `caller` of an arrival was.
    """
    called: dict[Call, set[str]] = defaultdict(set)
    for line in arrivals:
        called[line["seq"], line["run"], line["attempt"]].add(callers[line["caller"]])
    return [
        (call, fact["relay_node"])
        for call, fact in attempts_of(facts)
        if fact["kind"] in {"delivered", "attempt_failed"} and call in called and fact["relay_node"] not in called[call]
    ]


def passed_over(
    sends: Iterable[Line],
    arrivals: Iterable[Line],
    facts: Iterable[Line],
    callers: Mapping[str, str],
    *,
    frozen: Iterable[Holding],
    standstills: Iterable[Interval],
) -> list[tuple[str, int, int]]:
    """As `checkers.passed_over`, but for calls that came long after their claim because something stood still.

    What a relay held when it was frozen had been claimed by then, and may be called as soon as it goes on. While the database
    stands still, so does the clock: a claim that it was sent may be done, and answered, when it goes on.

    Args:
        sends: as there.
        arrivals: as there.
        facts: as there.
        callers: as in `recorded_by_another`.
        frozen: relays that were, and what they held.
        standstills: when the database was, apart from each other.
    """
    claimed_by = {(holding.node, call): holding.at for holding in frozen for call in holding.calls}
    stood_still = list(standstills)

    def moved(line: Line, at: float) -> Line:
        return {**line, "at": at - sum(_overlap(0.0, at, standstill) for standstill in stood_still)}

    def known_claim(line: Line) -> float:
        call = (line["seq"], line["run"], line["attempt"])
        at: float = line["at"]
        return min(at, claimed_by.get((callers[line["caller"]], call), at))

    return checkers.passed_over(
        [moved(line, line["at"]) for line in sends], [moved(line, known_claim(line)) for line in arrivals], facts
    )


def called_without_lease(arrivals: Iterable[Line], facts: Iterable[Line], slack: float = 0.05) -> list[Call]:
    """Calls of attempts that had been abandoned `slack` seconds before.

    A thread that is frozen between looking at its lease and sending can't help making one.
    """
    abandoned: dict[Call, float] = {
        call: fact["at"] for call, fact in attempts_of(facts) if fact["kind"] == "abandoned"
    }
    calls = (((line["seq"], line["run"], line["attempt"]), line["at"]) for line in arrivals)
    return sorted(call for call, at in calls if call in abandoned and at > abandoned[call] + slack)


def never_happened(counts: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """List what the run was to show, and did not: a rig that breaks nothing finds nothing."""
    return [name for name in wanted if not counts.get(name)]


def _in_a_row(call: Call, abandoned: set[Call]) -> int:
    seq, run, attempt = call
    return next(n for n in count(1) if (seq, run, attempt - n) not in abandoned)


def _overlap(begin: float, end: float, other: Interval) -> float:
    return max(0.0, min(end, other.end) - max(begin, other.begin))
