"""Load that is sent while things break, and the behaviour of the downstream service."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from itertools import count

from tests.helpers.traffic import Answer, Change, Script
from tests.helpers.webhooks import moment

ENTITIES = 300
BUSY_ENTITIES = 8
SHUFFLED = 100
"""Events whose order of arrival is left to chance."""
REMEMBERED = 500
SENT_TWICE, SENT_AGAIN = 0.04, 0.03
"""Shares of events that are sent twice at the same time, and once more some time later."""
SCHEDULE = ("200ms", "1s", "2s", "5s", "5s", "5s", "5s")
TRIES_THAT_MAY_FAIL = 3
REFUSED, DROPPED, SLOW = 0.04, 0.01, 0.02
USUALLY = (0.06, 0.14)
SLOWLY = (0.3, 1.5)
LEISURELY = 0.2


def events(seed: int) -> Iterator[Change]:
    """Without end, in about the order of their times, some entities busier than others, some events more than once."""
    chance = random.Random(seed)
    recent: deque[Change] = deque(maxlen=REMEMBERED)
    for first in count(0, SHUFFLED):
        numbers = list(range(first, first + SHUFFLED))
        chance.shuffle(numbers)
        for number in numbers:
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
    """A service that refuses some calls, is slow for some, and loses some answers; the same ones for the same seed."""

    def script(seq: int, attempt: int) -> Answer:
        chance = random.Random(f"{seed} {seq} {attempt}")
        how = chance.random() if attempt <= TRIES_THAT_MAY_FAIL else 1.0
        seconds = chance.uniform(*USUALLY)
        if how < REFUSED:
            return Answer(503, seconds)
        if how < REFUSED + DROPPED:
            return Answer(200, seconds, sent=False)
        if how < REFUSED + DROPPED + SLOW:
            return Answer(200, chance.uniform(*SLOWLY))
        return Answer(200, seconds)

    return script


def always_well(_seq: int, _attempt: int) -> Answer:
    """A service that does well, at its leisure: every call that is repeated is the relays' doing."""
    return Answer(200, LEISURELY)
