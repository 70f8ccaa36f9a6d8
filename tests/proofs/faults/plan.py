"""The events, downstream failures and faults of a run, drawn from its seed. Pure."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import msgspec

from tests.helpers.traffic import Answer, Change, Script
from tests.helpers.webhooks import moment

ENTITIES = 300
BUSY_ENTITIES = 8
SHUFFLED = 100
"""Size of the batches in which events are shuffled."""
REMEMBERED = 500
SENT_TWICE, SENT_AGAIN = 0.04, 0.03
"""Shares of events sent twice at once, and again later."""
TRIES_THAT_MAY_FAIL = 3
REFUSED, DROPPED, SLOW = 0.04, 0.01, 0.02
USUALLY = (0.06, 0.14)
SLOWLY = (0.3, 1.5)


def events(seed: int) -> Iterator[Change]:
    """Yield endless events in about the order of their times, some entities busier than others, some events repeated."""
    chance = random.Random(seed)
    recent: deque[Change] = deque(maxlen=REMEMBERED)
    for first in count(0, SHUFFLED):
        for number in chance.sample(range(first, first + SHUFFLED), SHUFFLED):
            some = BUSY_ENTITIES if chance.random() < 1 / 4 else ENTITIES
            event = f"u{chance.randrange(some)}", moment(number)
            recent.append(event)
            yield event
            how = chance.random()
            if how < SENT_TWICE:
                yield event
            elif how < SENT_TWICE + SENT_AGAIN:
                yield chance.choice(recent)


def unwell_now_and_then(seed: int) -> Script:
    """Return a script that refuses some calls, delays some, and loses some responses, by the seed."""

    def script(seq: int, attempt: int) -> Answer:
        chance = random.Random(f"{seed} {seq} {attempt}")
        how = chance.random() if attempt <= TRIES_THAT_MAY_FAIL else 1.0
        is_slow = REFUSED + DROPPED <= how < REFUSED + DROPPED + SLOW
        seconds = chance.uniform(*(SLOWLY if is_slow else USUALLY))
        return Answer(503 if how < REFUSED else 200, seconds, sent=not REFUSED <= how < REFUSED + DROPPED)

    return script


BACK_TO_WORK = 1.0
"""Typical seconds for the start of a relay."""
PATIENCE = 3.0
"""Seconds without a database that make the receiver refuse: it answers within 2.5 s."""
RELAYS = ("relay 1", "relay 2", "relay 3")
LASTS: Mapping[str, tuple[float, float]] = {
    "freeze a relay": (20, 25),
    "freeze a worker": (3, 6),
    "kill Postgres": (0.5, PATIENCE),
    "stop Postgres at once": (0, 1),
    "restart Postgres": (0, 1),
    "freeze Postgres": (1, PATIENCE + 1),
    "lock SQLite": (PATIENCE, PATIENCE + 1),
    "fill the disk": (PATIENCE, PATIENCE + 2),
}
"""Durations in seconds. A relay is frozen longer than a lease, until others take its work over: about 16 s."""
MOMENTS = ("after", "before", "terminate")
"""After the commit, before it and at the same time, in turn, so that a few cuts cover all."""


class Fault(msgspec.Struct, frozen=True):
    """A fault, `at` seconds after the start, or after the previous fault of its stream."""

    at: float
    kind: str
    seconds: float = 0.0
    """Duration of the fault."""
    about: str = ""
    """Application whose commit is cut, and the moment."""


Streams = Mapping[str, Sequence[Fault]]
"""Parallel streams of consecutive faults."""


def draw(seed: int, seconds: float, times: Mapping[str, int]) -> Streams:
    """Draw a schedule: so many faults of each kind over so many seconds, those of relays on each in turn."""
    chance = random.Random(seed)
    streams: dict[str, list[Fault]] = defaultdict(list)
    for kind, number in times.items():
        for n in range(number):
            lasts = round(chance.uniform(*LASTS.get(kind, (0, 0))), 2)
            application = "inbox-receiver" if chance.random() < 1 / 3 else "inbox-relay"
            about = f"{application} {MOMENTS[n % 3]}" if kind == "cut a commit" else ""
            streams[_stream(kind, n)].append(Fault(0, kind, lasts, about))
    return {name: _spread(chance, seconds, streams[name], BACK_TO_WORK * (name in RELAYS)) for name in streams}


def _stream(kind: str, number: int) -> str:
    match kind.split():
        case [*_, "relay"]:
            return RELAYS[number % len(RELAYS)]
        case [_, _, "worker" | "workers"]:
            return "workers"
        case ["cut", *_] | ["verify"]:
            return kind
        case _:
            return "database"


def _spread(chance: random.Random, seconds: float, faults: Sequence[Fault], each_costs: float) -> Sequence[Fault]:
    """Spread faults in random order with random pauses over about so many seconds."""
    order = chance.sample(faults, len(faults))
    rest = max(0.0, seconds - sum(fault.seconds + each_costs for fault in order))
    weights = [chance.uniform(0.2, 1.8) for _ in order]
    planned, now = [], 0.0
    for fault, weight in zip(order, weights, strict=True):
        now += rest * weight / sum(weights)
        planned.append(msgspec.structs.replace(fault, at=round(now, 2)))
        now += fault.seconds + each_costs
    return planned
