"""Invariants of a run, as pure functions over its ledgers. Each returns the evidence against it: an empty list is good.

`sends` are lines of a sender's ledger, `arrivals` of a downstream's, `facts` rows of `delivery_log` (seq, kind, attempt,
detail), of one route. What faults explain is in `tests.helpers.fault_checkers`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
Event = tuple[str, str]
Call = tuple[int, int, int]
"""seq, run, attempt."""


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
    sends: Iterable[Line], arrivals: Iterable[Line], facts: Iterable[Line] = (), slack: float = 2.0
) -> list[tuple[str, int, int]]:
    """(entity, seq, later seq) where a later event went first though the earlier one had been acknowledged long before.

    One that was set aside as dead, before it was ever called, lets the later ones go on.

    An event may come late only if it was committed after a later one had been claimed. When that was is seen by the
    call: it follows the claim within `slack` seconds, if it is the first attempt and nothing stands still between the two.
    """
    dead = {fact["seq"] for fact in facts if fact["kind"] == "dead"}
    acknowledged: dict[int, float] = {}
    for line in sends:
        if line["outcome"] == "ok":
            acknowledged.setdefault(line["seq"], line["at"])
    first_calls: dict[int, Line] = {}
    for line in sorted(arrivals, key=lambda line: line["n"]):
        first_calls.setdefault(line["seq"], line)
    by_entity: dict[str, list[Line]] = defaultdict(list)
    evidence = []
    for call in first_calls.values():
        for earlier in by_entity[call["entity"]]:
            known = float("inf") if call["seq"] in dead else acknowledged.get(call["seq"], float("inf"))
            later = (earlier["occurred_at"], earlier["seq"]) > (call["occurred_at"], call["seq"])
            if later and earlier["attempt"] == 1 and known + slack < earlier["at"]:
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


def _event(line: Line) -> Event:
    return (line["entity"], line["occurred_at"])


def _call(line: Line) -> Call:
    return (line["seq"], line["run"], line["attempt"])
