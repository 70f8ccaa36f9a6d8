"""The schedule of faults: what is done to whom, drawn from a seed before anything starts. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import msgspec

Kind = Literal[
    "kill a relay",
    "freeze a relay",
    "replace a relay",
    "kill a worker",
    "kill all workers",
    "freeze a worker",
    "kill Postgres",
    "stop Postgres at once",
    "restart Postgres",
    "kill a backend",
    "freeze Postgres",
    "lock SQLite",
    "fill the disk",
    "cut a commit",
    "verify",
]

BACK_TO_WORK = 1.0
"""Seconds a relay takes to start, about."""
LONGER_THAN_A_LEASE = (20.0, 25.0)
"""At most; it ends when others have begun with what the frozen relay holds, about 16 s."""
PATIENCE = 3.0
"""The receiver answers within 2.5 s: what takes a database away for longer makes it refuse."""


class Fault(msgspec.Struct, frozen=True):
    """One thing that is done, so many seconds after the start, or when the last one of its own stream has ended."""

    at: float
    kind: Kind
    seconds: float = 0.0
    """Duration of a fault that lasts."""
    about: str = ""
    """Application whose commit is cut, and the moment of the cut."""


Streams = Mapping[str, Sequence[Fault]]
"""Streams of faults that run beside each other; the faults of one stream follow each other."""


class Amounts(msgspec.Struct, frozen=True):
    """Number of faults of each kind, spread over `seconds`."""

    seconds: float
    kills: int = 0
    """Of each relay."""
    freezes: int = 0
    """Of a relay, one after the other."""
    replacements: int = 0
    """Of each relay."""
    worker_kills: int = 0
    worker_freezes: int = 0
    postgres_kills: int = 0
    postgres_stops: int = 0
    backend_kills: int = 0
    postgres_freezes: int = 0
    sqlite_locks: int = 0
    full_disks: int = 0
    cuts: int = 0
    verifications: int = 0


RELAYS = ("relay 1", "relay 2", "relay 3")


def draw(seed: int, amounts: Amounts) -> Streams:
    """The schedule of this seed."""
    chance, a = random.Random(seed), amounts
    spread, lasting = partial(_spread, chance, a.seconds), partial(_fault, chance)
    streams: dict[str, Sequence[Fault]] = {}
    for number, relay in enumerate(RELAYS):
        frozen = len(range(number, a.freezes, len(RELAYS)))
        streams[relay] = spread(
            [lasting("freeze a relay", LONGER_THAN_A_LEASE) for _ in range(frozen)]
            + [Fault(0, "kill a relay")] * a.kills
            + [Fault(0, "replace a relay")] * a.replacements,
            each_costs=BACK_TO_WORK,
        )
    streams["workers"] = spread(
        [Fault(0, ("kill a worker", "kill all workers")[number % 2]) for number in range(a.worker_kills)]
        + [lasting("freeze a worker", (3, 6)) for _ in range(a.worker_freezes)]
    )
    stops: tuple[Kind, Kind] = ("stop Postgres at once", "restart Postgres")
    streams["database"] = spread(
        [lasting("kill Postgres", (0.5, PATIENCE)) for _ in range(a.postgres_kills)]
        + [lasting("freeze Postgres", (1, PATIENCE + 1)) for _ in range(a.postgres_freezes)]
        + [lasting(stops[number % 2], (0, 1)) for number in range(a.postgres_stops)]
        + [Fault(0, "kill a backend")] * a.backend_kills
        + [lasting("lock SQLite", (PATIENCE, PATIENCE + 1)) for _ in range(a.sqlite_locks)]
        + [lasting("fill the disk", (PATIENCE, PATIENCE + 2)) for _ in range(a.full_disks)]
    )
    streams["commits"] = spread([_cut(chance, number) for number in range(a.cuts)])
    streams["verify"] = spread([Fault(0, "verify")] * a.verifications)
    return {name: faults for name, faults in streams.items() if faults}


def _fault(chance: random.Random, kind: Kind, seconds: tuple[float, float]) -> Fault:
    return Fault(0, kind, round(chance.uniform(*seconds), 2))


def _cut(chance: random.Random, number: int) -> Fault:
    """After the commit, before it and beside it in turn, so that a few cuts have all of them; the relay's twice as often."""
    moment = ("after", "before", "terminate")[number % 3]
    application = "inbox-receiver" if chance.random() < 1 / 3 else "inbox-relay"
    return Fault(0, "cut a commit", about=f"{application} {moment}")


def _spread(
    chance: random.Random, seconds: float, faults: Sequence[Fault], *, each_costs: float = 0.0
) -> Sequence[Fault]:
    """In an order left to chance, with pauses between them left to chance, over about so many seconds."""
    order = list(faults)
    chance.shuffle(order)
    rest = max(0.0, seconds - sum(fault.seconds + each_costs for fault in order))
    weights = [chance.uniform(0.2, 1.8) for _ in order]
    planned, now = [], 0.0
    for fault, weight in zip(order, weights, strict=True):
        now += rest * weight / sum(weights)
        planned.append(msgspec.structs.replace(fault, at=round(now, 2)))
        now += fault.seconds + each_costs
    return planned
