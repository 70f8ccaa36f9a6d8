"""Invariants of a run, as pure functions over its ledgers. Each returns the evidence against it: an empty list is good.

`sends` are lines of a sender's ledger, `arrivals` of a downstream's, `facts` rows of `delivery_log` (seq, kind, attempt,
detail), of one route. All moments are monotonic seconds; those of facts too, where things were broken on purpose.
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


def lost(sends: Iterable[Line], arrivals: Iterable[Line]) -> list[Event]:
    """Events that were acknowledged and that the downstream service never answered with success."""
    there = {_event(line) for line in arrivals if line["status"] < 300}
    return sorted({_event(line) for line in sends if line["outcome"] == "ok"} - there)


def phantoms(sends: Iterable[Line], arrivals: Iterable[Line]) -> list[str]:
    """Bodies that arrived and that nobody ever began to send."""
    attempted = {line["body"] for line in sends if line["outcome"] is None}
    return sorted({line["body"] for line in arrivals} - attempted)


def two_numbers(sends: Iterable[Line], stored: Iterable[Line]) -> list[tuple[Event, list[int]]]:
    """Events of which answers, or the inbox (rows of entity, occurred_at, seq), gave different numbers."""
    numbers: dict[Event, set[int]] = defaultdict(set)
    for line in (*stored, *(line for line in sends if line["outcome"] == "ok")):
        numbers[_event(line)].add(line["seq"])
    return sorted((event, sorted(seqs)) for event, seqs in numbers.items() if len(seqs) > 1)


def unstored(sends: Iterable[Line], stored: Iterable[Line]) -> list[Event]:
    """Events that were acknowledged and are not in the inbox."""
    return sorted({_event(line) for line in sends if line["outcome"] == "ok"} - {_event(line) for line in stored})


def out_of_order(arrivals: Iterable[Line], facts: Iterable[Line]) -> list[tuple[str, int, str]]:
    """First deliveries that came behind a later event of their entity without being marked late, or the other way round.

    One that was replayed may be marked late though its first call had been in order. A call that was cut by a lost lease
    and not counted is made again under the same number, and only that one is its place: meanwhile an older event that has
    arrived may go first. One that was set aside was delivered as far as the downstream service knows, and nobody else: what
    comes behind it is not late.
    """
    facts, arrivals = list(facts), list(arrivals)
    uncounted = {fact["seq"] for fact in facts if fact["detail"].get("counted") is False}
    in_order = sorted(arrivals, key=lambda line: line["n"])
    last_of_attempt = {(line["seq"], line.get("run", 0), line["attempt"]): line["n"] for line in in_order}
    replayed = {fact["seq"] for fact in facts if fact["kind"] == "replayed"}
    set_aside = {fact["seq"] for fact in facts if fact["kind"] == "dead"}
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
        if line["seq"] not in set_aside:
            furthest[entity] = max(key, furthest.get(entity, nothing))
    return evidence


def passed_over(
    sends: Iterable[Line],
    arrivals: Iterable[Line],
    facts: Iterable[Line] = (),
    callers: Mapping[str, str] = {},
    *,
    frozen: Iterable[Holding] = (),
    standstills: Sequence[Interval] = (),
    slack: float = 2.0,
) -> list[tuple[str, int, int]]:
    """(entity, seq, later seq) where a later event went first though the earlier one had been acknowledged long before.

    One that was set aside as dead, before it was ever called, lets the later ones go on.

    An event may come late only if it was committed after a later one had been claimed. When that was is seen by the
    call: it follows the claim within `slack` seconds, if it is the first attempt and nothing stands still between the two.
    What a relay held when it was `frozen` had been claimed by then, and may be called as soon as it goes on. While the
    database stands still, so does the clock: a claim that it was sent may be done, and answered, when it goes on.

    `callers` is as in `recorded_by_another`; `standstills` of the database are apart from each other.
    """
    claimed_by = {(holding.node, call): holding.at for holding in frozen for call in holding.calls}

    def moved(at: float) -> float:
        return at - sum(_overlap(0.0, at, standstill) for standstill in standstills)

    def claimed_at(line: Line) -> float:
        at: float = line["at"]
        return moved(min(at, claimed_by.get((callers.get(line.get("caller", ""), ""), _call(line)), at)))

    dead = {fact["seq"] for fact in facts if fact["kind"] == "dead"}
    acknowledged: dict[int, float] = {}
    for line in sends:
        if line["outcome"] == "ok":
            acknowledged.setdefault(line["seq"], moved(line["at"]))
    first_calls: dict[int, Line] = {}
    for line in sorted(arrivals, key=lambda line: line["n"]):
        first_calls.setdefault(line["seq"], line)
    by_entity: dict[str, list[Line]] = defaultdict(list)
    evidence = []
    for call in first_calls.values():
        for earlier in by_entity[call["entity"]]:
            known = float("inf") if call["seq"] in dead else acknowledged.get(call["seq"], float("inf"))
            later = (earlier["occurred_at"], earlier["seq"]) > (call["occurred_at"], call["seq"])
            if later and earlier["attempt"] == 1 and known + slack < claimed_at(earlier):
                evidence.append((call["entity"], call["seq"], earlier["seq"]))
        by_entity[call["entity"]].append(call)
    return evidence


def taken_as_new_twice(sends: Iterable[Line]) -> list[Event]:
    """Events of which two requests were answered "accepted": the later one was a repeat."""
    accepted = Counter(_event(line) for line in sends if line.get("answer") == "accepted")
    return sorted(event for event, number in accepted.items() if number > 1)


def improper_refusals(sends: Iterable[Line]) -> list[tuple[int, str | None]]:
    """(status, Retry-After) of answers that are neither 200 nor a 503 that says when to come again."""
    failed = {(line["status"], line["retry_after"]) for line in sends if line["outcome"] == "failed"}
    return sorted((status, after) for status, after in failed if status != 503 or not after)


def repeats(arrivals: Iterable[Line]) -> list[Call]:
    """Calls that came after an earlier one of the same delivery had been processed well."""
    done: set[tuple[int, int]] = set()
    found = []
    for line in sorted(arrivals, key=lambda line: line["n"]):
        if (line["seq"], line["run"]) in done:
            found.append(_call(line))
        if line["status"] < 300:
            done.add((line["seq"], line["run"]))
    return sorted(found)


def unexplained_repeats(arrivals: Iterable[Line], facts: Iterable[Line]) -> list[tuple[Call, str]]:
    """Calls whose attempt the log does not know, or calls a failure though its success had been told."""
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
    """Not one that may have had an effect that nobody saw."""
    return fact["kind"] == "attempt_failed" and fact["detail"]["error_class"] not in {"unknown", "lease_lost"}


def attempts_called_twice(arrivals: Iterable[Line], facts: Iterable[Line] = ()) -> list[Call]:
    """Attempts that arrived more than once: each is one call here. One that did not count is made again under its number."""
    allowed = Counter(call for call, fact in attempts_of(facts) if not fact["detail"].get("counted", True))
    calls = Counter(_call(line) for line in arrivals)
    return sorted(call for call, number in calls.items() if number > 1 + allowed[call])


def attempts_of(facts: Iterable[Line]) -> list[tuple[Call, Line]]:
    """The attempt that each fact is about, of those that are about one; in the order of the log."""
    run: dict[int, int] = defaultdict(int)
    found = []
    for fact in facts:
        if fact["kind"] in {"replayed", "rearmed"}:
            run[fact["seq"]] += 1
        elif fact["kind"] in {"delivered", "attempt_failed", "abandoned", "dead"}:
            attempt = fact["attempt"] + int(not fact["detail"].get("counted", True))
            found.append(((fact["seq"], run[fact["seq"]], attempt), fact))
    return found


def unfinished(stored: Iterable[Line], facts: Iterable[Line]) -> list[int]:
    """Seqs in the inbox without exactly one `delivered` fact."""
    ends = Counter(fact["seq"] for fact in facts if fact["kind"] == "delivered")
    return sorted(line["seq"] for line in stored if ends[line["seq"]] != 1)


def complaints(logs: Mapping[str, str], words: Sequence[str] = ("Traceback", "CRITICAL")) -> list[tuple[str, str]]:
    """(log, line) of every line of a log that holds one of the words."""
    return [
        (name, line) for name, text in logs.items() for line in text.splitlines() if any(word in line for word in words)
    ]


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
        called[_call(line)].add(callers[line["caller"]])
    return [
        (call, fact["relay_node"])
        for call, fact in attempts_of(facts)
        if fact["kind"] in {"delivered", "attempt_failed"} and call in called and fact["relay_node"] not in called[call]
    ]


def called_without_lease(arrivals: Iterable[Line], facts: Iterable[Line], slack: float = 0.05) -> list[Call]:
    """Calls of attempts that had been abandoned `slack` seconds before.

    A thread that is frozen between looking at its lease and sending can't help making one.
    """
    abandoned: dict[Call, float] = {
        call: fact["at"] for call, fact in attempts_of(facts) if fact["kind"] == "abandoned"
    }
    calls = ((_call(line), line["at"]) for line in arrivals)
    return sorted(call for call, at in calls if call in abandoned and at > abandoned[call] + slack)


def never_happened(counts: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """List what the run was to show, and did not: a rig that breaks nothing finds nothing."""
    return [name for name in wanted if not counts.get(name)]


def _event(line: Line) -> Event:
    return (line["entity"], line["occurred_at"])


def _call(line: Line) -> Call:
    return (line["seq"], line["run"], line["attempt"])


def _in_a_row(call: Call, abandoned: set[Call]) -> int:
    seq, run, attempt = call
    return next(n for n in count(1) if (seq, run, attempt - n) not in abandoned)


def _overlap(begin: float, end: float, other: Interval) -> float:
    return max(0.0, min(end, other.end) - max(begin, other.begin))


def of_any_run(
    sends: Sequence[Line],
    arrivals: Sequence[Line],
    inbox: Sequence[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]],
    logs: Mapping[str, str],
) -> dict[str, Sequence[object]]:
    """The findings of all checkers that need to know nothing of the faults."""
    return {
        "lost": lost(sends, arrivals),
        "not stored": unstored(sends, inbox),
        "phantoms": phantoms(sends, arrivals),
        "two numbers": two_numbers(sends, inbox),
        "repeats taken for new": taken_as_new_twice(sends),
        "improper refusals": improper_refusals(sends),
        "unfinished": unfinished(inbox, facts),
        "out of order": out_of_order(arrivals, facts),
        "unexplained repeats": unexplained_repeats(arrivals, facts),
        "attempts called twice": attempts_called_twice(arrivals, facts),
        "complaints in logs": complaints(logs),
    }
