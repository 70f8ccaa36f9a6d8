"""Times of each fault: the ledger of faults as the checkers take it. Pure; all moments are monotonic seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from inbox.db.order_lock import HELD_SECONDS
from tests.helpers.checkers import Holding, Interval, Line

RELAYS_BACK_OFF = 6.0
"""After an outage a relay may wait so long before it tries again."""
RELAYS_TRY_AGAIN = 1.0
"""After a route's lock is free, a relay may wait so long before it tries it again."""
FOREVER = float("inf")


def outages(faults: Iterable[Line]) -> list[Interval]:
    """List the intervals without a database, each until relays have noticed that there is one again."""
    return merged(Interval(line["begin"], line["end"] + RELAYS_BACK_OFF) for line in faults if line.get("outage"))


def locked_by_frozen(faults: Iterable[Line]) -> list[Interval]:
    """List the intervals in which a frozen relay may have a route's lock, each until relays have tried it again."""
    held = HELD_SECONDS + RELAYS_TRY_AGAIN
    return [Interval(line["begin"], line["begin"] + held) for line in faults if line["kind"] == "freeze a relay"]


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Apart from each other, so that no moment is counted twice."""
    apart: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: interval.begin):
        if apart and interval.begin <= apart[-1].end:
            apart[-1] = Interval(apart[-1].begin, max(interval.end, apart[-1].end))
        else:
            apart.append(interval)
    return apart


def holdings(faults: Iterable[Line], kind: str = "kill a relay") -> list[Holding]:
    """List what relays held when they were killed, or when a fault of another `kind` hit them."""
    return [
        Holding(line["begin"], line["node"], tuple((seq, run, attempt) for seq, run, attempt in line["held"]))
        for line in faults
        if line["kind"] == kind and line["held"]
    ]


def standstills(faults: Iterable[Line]) -> list[Interval]:
    """List the intervals in which the database was there and did nothing."""
    return [Interval(line["begin"], line["end"]) for line in faults if line["kind"] == "freeze Postgres"]


def troubles(faults: Sequence[Line], cuts: Sequence[Line], pids: Mapping[str, int]) -> dict[str, list[Interval]]:
    """List by relay node the intervals of its faults: its own, its connection's, or those of everybody's database.

    `pids` are those of all nodes.
    """
    found: dict[str, list[Interval]] = defaultdict(list)
    for line in faults:
        if line["kind"] == "kill a relay":
            found[line["node"]].append(Interval(line["begin"], FOREVER))
        elif line["kind"] == "freeze a relay":
            found[line["node"]].append(Interval(line["begin"], line["end"]))
    for node, pid in pids.items():
        found[node] += [Interval(cut["at"], cut["at"]) for cut in cuts if cut["pid"] == pid]
        found[node] += outages(faults)
    return found


def could_tell(verification: Line, faults: Iterable[Line]) -> bool:
    """Return whether `relay verify` could do its work: without a database it can't report anything."""
    away = any(
        line.get("outage") and line["begin"] <= verification["end"] and verification["begin"] <= line["end"]
        for line in faults
    )
    return not (away and verification["status"] == 2)
