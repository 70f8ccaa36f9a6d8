"""Invariants of a run, as pure functions over its ledgers. Each returns its violations.

`sends` are lines of a sender's ledger, `arrivals` of a downstream service's, `facts` rows of `delivery_log` (seq, kind,
attempt, detail) of one route. Times are monotonic seconds, those of facts only in runs with planned faults.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import msgspec

LEASE_SECONDS = 15.0

Line = Mapping[str, Any]
Event = tuple[str, str]
Call = tuple[int, int, int]
"""seq, run, attempt."""


class Interval(msgspec.Struct, frozen=True):
    """A time interval, in monotonic seconds."""

    begin: float
    end: float


class Takeover(msgspec.Struct, frozen=True):
    """Seconds from a relay's end to the next attempt of its delivery, and those without a database."""

    seconds: float
    without_database: float
    crashes: int = 1
    """Consecutive attempts that ended with their relay; after some, the delivery is a suspect."""


class Holding(msgspec.Struct, frozen=True):
    """Calls in flight at a relay when it was killed or frozen."""

    at: float
    node: str
    calls: tuple[Call, ...] = ()


def find_lost(sends: Iterable[Line], arrivals: Iterable[Line]) -> list[Event]:
    """Return acknowledged events without a successful call."""
    there = {_event(line) for line in arrivals if line["status"] < 300}
    return sorted({_event(line) for line in sends if line["outcome"] == "ok"} - there)


def find_phantoms(sends: Iterable[Line], arrivals: Iterable[Line]) -> list[str]:
    """Return bodies that arrived and were never sent."""
    attempted = {line["body"] for line in sends if line["outcome"] is None}
    return sorted({line["body"] for line in arrivals} - attempted)


def find_two_numbers(sends: Iterable[Line], stored: Iterable[Line]) -> list[tuple[Event, list[int]]]:
    """Return events with several seqs, in answers or in the inbox (rows of entity, occurred_at, seq)."""
    numbers: dict[Event, set[int]] = defaultdict(set)
    for line in (*stored, *(line for line in sends if line["outcome"] == "ok")):
        numbers[_event(line)].add(line["seq"])
    return sorted((event, sorted(seqs)) for event, seqs in numbers.items() if len(seqs) > 1)


def find_unstored(sends: Iterable[Line], stored: Iterable[Line]) -> list[Event]:
    """Return acknowledged events that are not in the inbox."""
    return sorted({_event(line) for line in sends if line["outcome"] == "ok"} - {_event(line) for line in stored})


def find_out_of_order(arrivals: Iterable[Line], facts: Iterable[Line]) -> list[tuple[str, int, str]]:
    """Return first deliveries behind a later event of their entity that are not marked late, or the reverse.

    A replayed event may be marked late although its first call was in order. A call that was cut by a lost lease and not
    counted is repeated under the same number; only the repetition counts, and an older event may go between. A quarantined
    event may have been delivered, but no relay knows it: events behind it are not late.
    """
    facts, arrivals = list(facts), list(arrivals)
    uncounted = {fact["seq"] for fact in facts if fact["detail"].get("counted") is False}
    in_order = sorted(arrivals, key=lambda line: line["n"])
    last_of_attempt = {(line["seq"], line.get("run", 0), line["attempt"]): line["n"] for line in in_order}
    replayed = {fact["seq"] for fact in facts if fact["kind"] == "replayed"}
    quarantined = {fact["seq"] for fact in facts if fact["kind"] == "dead"}
    late = {fact["seq"] for fact in facts if fact["kind"] == "delivered" and fact["detail"].get("late")}
    furthest: dict[str, tuple[str, int]] = {}
    furthest_of_all: dict[str, tuple[str, int]] = {}
    seen: set[int] = set()
    evidence = []
    for line in in_order:
        attempt = (line["seq"], line.get("run", 0), line["attempt"])
        was_cut = line["seq"] in uncounted and line["n"] < last_of_attempt[attempt]
        if line["seq"] in seen or was_cut:
            continue
        seen.add(line["seq"])
        key = (line["occurred_at"], line["seq"])
        entity, nothing = line["entity"], ("", 0)
        if key < furthest.get(entity, nothing) and line["seq"] not in late:
            evidence.append((entity, line["seq"], "behind, not marked"))
        if key > furthest_of_all.get(entity, nothing) and line["seq"] in late - replayed:
            evidence.append((entity, line["seq"], "marked, not behind"))
        furthest_of_all[entity] = max(key, furthest_of_all.get(entity, nothing))
        if line["seq"] not in quarantined:
            furthest[entity] = max(key, furthest.get(entity, nothing))
    return evidence


def find_passed_over(
    sends: Iterable[Line],
    arrivals: Iterable[Line],
    facts: Iterable[Line] = (),
    callers: Mapping[str, str] = {},
    *,
    frozen: Iterable[Holding] = (),
    standstills: Sequence[Interval] = (),
    slack: float = 2.0,
) -> list[tuple[str, int, int]]:
    """Return (entity, seq, later seq) where a later event went first although the earlier one was acknowledged long before.

    An event that died before its first call lets later ones pass.

    An event may be late only if it was committed after a later one was claimed. The call shows the time of the claim: a
    first attempt follows within `slack` seconds, unless something stands still between the two. Calls that a relay held
    when it was `frozen` were claimed before, and may be made when it resumes. While the database stands still, so does
    the clock: a pending claim may complete afterwards.

    `callers` is as in `find_recorded_by_another`; `standstills` of the database do not overlap.
    """
    claimed_by = {(holding.node, call): holding.at for holding in frozen for call in holding.calls}

    def move(at: float) -> float:
        return at - sum(_overlap(0.0, at, standstill) for standstill in standstills)

    def find_claim_time(line: Line) -> float:
        at: float = line["at"]
        return move(min(at, claimed_by.get((callers.get(line.get("caller", ""), ""), _call(line)), at)))

    dead = {fact["seq"] for fact in facts if fact["kind"] == "dead"}
    acknowledged: dict[int, float] = {}
    for line in sends:
        if line["outcome"] == "ok":
            acknowledged.setdefault(line["seq"], move(line["at"]))
    first_calls: dict[int, Line] = {}
    for line in sorted(arrivals, key=lambda line: line["n"]):
        first_calls.setdefault(line["seq"], line)
    by_entity: dict[str, list[Line]] = defaultdict(list)
    evidence = []
    for call in first_calls.values():
        for earlier in by_entity[call["entity"]]:
            known = float("inf") if call["seq"] in dead else acknowledged.get(call["seq"], float("inf"))
            later = (earlier["occurred_at"], earlier["seq"]) > (call["occurred_at"], call["seq"])
            if later and earlier["attempt"] == 1 and known + slack < find_claim_time(earlier):
                evidence.append((call["entity"], call["seq"], earlier["seq"]))
        by_entity[call["entity"]].append(call)
    return evidence


def find_taken_as_new_twice(sends: Iterable[Line]) -> list[Event]:
    """Return events with two "accepted" answers: the later request was a duplicate."""
    accepted = Counter(_event(line) for line in sends if line.get("answer") == "accepted")
    return sorted(event for event, number in accepted.items() if number > 1)


def find_improper_refusals(sends: Iterable[Line]) -> list[tuple[int, str | None]]:
    """Return (status, Retry-After) of answers other than 200 or a 503 with Retry-After."""
    failed = {(line["status"], line["retry_after"]) for line in sends if line["outcome"] == "failed"}
    return sorted((status, after) for status, after in failed if status != 503 or not after)


def find_repeats(arrivals: Iterable[Line]) -> list[Call]:
    """Return calls after a successful call of the same delivery."""
    done: set[tuple[int, int]] = set()
    found = []
    for line in sorted(arrivals, key=lambda line: line["n"]):
        if (line["seq"], line["run"]) in done:
            found.append(_call(line))
        if line["status"] < 300:
            done.add((line["seq"], line["run"]))
    return sorted(found)


def find_unexplained_repeats(arrivals: Iterable[Line], facts: Iterable[Line]) -> list[tuple[Call, str]]:
    """Return calls whose attempt has no fact, or a failure although the service answered with success."""
    became = dict(attempts_of(facts))
    evidence = set()
    for line in arrivals:
        fact = became.get(_call(line))
        if fact is None:
            evidence.add((_call(line), "no fact"))
        elif line["status"] < 300 and line.get("sent", True) and _is_known_failure(fact):
            evidence.add((_call(line), str(fact["detail"]["error_class"])))
    return sorted(evidence)


def _is_known_failure(fact: Line) -> bool:
    """Return whether the failed attempt certainly had no effect."""
    return fact["kind"] == "attempt_failed" and fact["detail"]["error_class"] not in {"unknown", "lease_lost"}


def find_attempts_called_twice(arrivals: Iterable[Line], facts: Iterable[Line] = ()) -> list[Call]:
    """Return attempts that arrived more than once; an attempt that was not counted may be repeated under its number."""
    allowed = Counter(call for call, fact in attempts_of(facts) if not fact["detail"].get("counted", True))
    calls = Counter(_call(line) for line in arrivals)
    return sorted(call for call, number in calls.items() if number > 1 + allowed[call])


def attempts_of(facts: Iterable[Line]) -> list[tuple[Call, Line]]:
    """Return the attempt of each fact that ends one, in the order of the log."""
    run: dict[int, int] = defaultdict(int)
    found = []
    for fact in facts:
        if fact["kind"] in {"replayed", "rearmed"}:
            run[fact["seq"]] += 1
        elif fact["kind"] in {"delivered", "attempt_failed", "abandoned", "dead"}:
            attempt = fact["attempt"] + int(not fact["detail"].get("counted", True))
            found.append(((fact["seq"], run[fact["seq"]], attempt), fact))
    return found


def find_unfinished(stored: Iterable[Line], facts: Iterable[Line]) -> list[int]:
    """Return seqs in the inbox without exactly one `delivered` fact."""
    ends = Counter(fact["seq"] for fact in facts if fact["kind"] == "delivered")
    return sorted(line["seq"] for line in stored if ends[line["seq"]] != 1)


def find_complaints(logs: Mapping[str, str], words: Sequence[str] = ("Traceback", "CRITICAL")) -> list[tuple[str, str]]:
    """Return (log, line) of every log line with one of the words."""
    return [
        (name, line) for name, text in logs.items() for line in text.splitlines() if any(word in line for word in words)
    ]


def takeovers(
    holdings: Iterable[Holding], arrivals: Iterable[Line], facts: Sequence[Line], outages: Iterable[Interval]
) -> dict[Call, Takeover]:
    """Return, for each attempt that ended with its process, the time until the next one began.

    The next attempt shows by its call, or by the end of its lease if it was lost too.
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
            measured[call] = Takeover(until - holding.at, without, _count_in_a_row(call, abandoned))
    return measured


def find_slow_takeovers(
    measured: Mapping[Call, Takeover], within: float = 20.0, suspects_within: float = 60.0, slowness: float = 1.0
) -> list[tuple[Call, float]]:
    """Return takeovers above the limit, not counting time without a database.

    The part of a limit beyond a lease is multiplied by `slowness`.

    A suspect, whose relay died twice in a row, has a longer limit: a relay tries one suspect at a time.
    """

    def limit(takeover: Takeover) -> float:
        return LEASE_SECONDS + slowness * ((within if takeover.crashes < 2 else suspects_within) - LEASE_SECONDS)

    return sorted(
        (call, round(takeover.seconds, 1))
        for call, takeover in measured.items()
        if takeover.seconds - takeover.without_database > limit(takeover)
    )


def find_abandoned_without_cause(
    facts: Iterable[Line], troubles: Mapping[str, Sequence[Interval]]
) -> list[tuple[int, str]]:
    """Return (seq, relay node) of leases that expired without a fault at their holder.

    `troubles` are the faults of each node; a lease may expire during one, or up to 7 s plus a lease after it.
    """
    evidence = []
    for fact in facts:
        if fact["kind"] == "abandoned":
            node = fact["detail"]["relay_node"]
            when = (Interval(trouble.begin, trouble.end + LEASE_SECONDS + 7) for trouble in troubles.get(node, ()))
            if not any(trouble.begin <= fact["at"] <= trouble.end for trouble in when):
                evidence.append((fact["seq"], node))
    return evidence


def find_recorded_by_another(
    arrivals: Iterable[Line], facts: Iterable[Line], callers: Mapping[str, str]
) -> list[tuple[Call, str]]:
    """Return attempts whose outcome was recorded by another relay than the caller.

    `callers` maps the `caller` of an arrival to its relay node.
    """
    called: dict[Call, set[str]] = defaultdict(set)
    for line in arrivals:
        called[_call(line)].add(callers[line["caller"]])
    return [
        (call, fact["relay_node"])
        for call, fact in attempts_of(facts)
        if fact["kind"] in {"delivered", "attempt_failed"} and call in called and fact["relay_node"] not in called[call]
    ]


def find_called_without_lease(arrivals: Iterable[Line], facts: Iterable[Line], slack: float = 0.05) -> list[Call]:
    """Return calls of attempts that were abandoned more than `slack` seconds before.

    A thread frozen between checking its lease and sending makes one.
    """
    abandoned: dict[Call, float] = {
        call: fact["at"] for call, fact in attempts_of(facts) if fact["kind"] == "abandoned"
    }
    calls = ((_call(line), line["at"]) for line in arrivals)
    return sorted(call for call, at in calls if call in abandoned and at > abandoned[call] + slack)


def find_never_happened(counts: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """Return the wanted counts that are 0: a rig that breaks nothing proves nothing."""
    return [name for name in wanted if not counts.get(name)]


def _event(line: Line) -> Event:
    return (line["entity"], line["occurred_at"])


def _call(line: Line) -> Call:
    return (line["seq"], line["run"], line["attempt"])


def _count_in_a_row(call: Call, abandoned: set[Call]) -> int:
    seq, run, attempt = call
    return next(n for n in count(1) if (seq, run, attempt - n) not in abandoned)


def _overlap(begin: float, end: float, other: Interval) -> float:
    return max(0.0, min(end, other.end) - max(begin, other.begin))


def run_common_checkers(
    sends: Sequence[Line],
    arrivals: Sequence[Line],
    inbox: Sequence[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]],
    logs: Mapping[str, str],
) -> dict[str, Sequence[object]]:
    """Return the findings of all checkers that need no knowledge of the faults."""
    return {
        "lost": find_lost(sends, arrivals),
        "not stored": find_unstored(sends, inbox),
        "phantoms": find_phantoms(sends, arrivals),
        "two numbers": find_two_numbers(sends, inbox),
        "repeats taken for new": find_taken_as_new_twice(sends),
        "improper refusals": find_improper_refusals(sends),
        "unfinished": find_unfinished(inbox, facts),
        "out of order": find_out_of_order(arrivals, facts),
        "unexplained repeats": find_unexplained_repeats(arrivals, facts),
        "attempts called twice": find_attempts_called_twice(arrivals, facts),
        "complaints in logs": find_complaints(logs),
    }
