"""What must hold of a run, as pure functions over its ledgers. Each returns the evidence against it: an empty list is good.

`sends` are lines of a sender's ledger, `arrivals` of a downstream's, `facts` rows of `delivery_log` (seq, kind, detail).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
Event = tuple[str, str]


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
    """First deliveries that came behind a later event of their entity without being marked late, or the other way round."""
    late = {fact["seq"] for fact in facts if fact["kind"] == "delivered" and fact["detail"].get("late")}
    furthest: dict[str, tuple[str, int]] = {}
    seen: set[int] = set()
    evidence = []
    for line in sorted(arrivals, key=lambda line: line["n"]):
        if line["seq"] in seen:
            continue
        seen.add(line["seq"])
        key = (line["occurred_at"], line["seq"])
        behind = key < furthest.get(line["entity"], ("", 0))
        if behind != (line["seq"] in late):
            evidence.append((line["entity"], line["seq"], "behind, not marked" if behind else "marked, not behind"))
        furthest[line["entity"]] = max(key, furthest.get(line["entity"], ("", 0)))
    return evidence


def passed_over(sends: Iterable[Line], arrivals: Iterable[Line], slack: float = 2.0) -> list[tuple[str, int, int]]:
    """(entity, seq, later seq) where a later event went first though the earlier one had been acknowledged long before.

    An event may come late only if it was committed after a later one had been claimed. When that was is seen by the
    call: it follows the claim within `slack` seconds, if it is the first attempt.
    """
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
            known = acknowledged.get(call["seq"], float("inf"))
            later = (earlier["occurred_at"], earlier["seq"]) > (call["occurred_at"], call["seq"])
            if later and earlier["attempt"] == 1 and known + slack < earlier["at"]:
                evidence.append((call["entity"], call["seq"], earlier["seq"]))
        by_entity[call["entity"]].append(call)
    return evidence


def unexplained_repeats(arrivals: Iterable[Line], facts: Iterable[Line]) -> list[tuple[int, int]]:
    """(seq, calls) of deliveries that were called more often than attempts without a known success explain."""
    explained = Counter(fact["seq"] for fact in facts if fact["kind"] in {"abandoned", "attempt_failed"})
    calls = Counter(line["seq"] for line in arrivals)
    return sorted((seq, number) for seq, number in calls.items() if number > 1 + explained[seq])


def attempts_called_twice(arrivals: Iterable[Line]) -> list[tuple[int, int]]:
    """(seq, attempt) that arrived more than once: an attempt is one call here."""
    calls = Counter((line["seq"], line["attempt"]) for line in arrivals)
    return sorted(key for key, number in calls.items() if number > 1)


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
