"""Under load, relays and receiver workers are killed with SIGKILL; afterwards everything has arrived, in order."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from sqlalchemy import Engine

from tests.helpers import checkers
from tests.helpers.downstream import Downstream, serving
from tests.helpers.evidence import facts, in_flight_of, open_states, stored
from tests.helpers.outage import is_postgres
from tests.helpers.processes import Program, Site, is_ready, site
from tests.helpers.sender import Event, Sender
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment

RELAYS = 3
KILLS = 10
KILLED_WORKERS = {3: 1, 7: 2}
"""Before which kills of a relay so many workers of the receiver are killed, too: all of them, the second time."""
ENTITIES = 250
BUSY_ENTITIES = 8
SHUFFLED = 200
"""Events whose order of arrival is left to chance."""
PER_SECOND = 200.0
SECONDS_DOWNSTREAM = 0.05
ARRIVALS_BETWEEN_KILLS = 60
DRAINED_WITHIN = 60.0
"""The last lease ends 15 s after the last kill; the rest is what had to wait for it."""


def unwell_now_and_then(seq: int, attempt: int) -> int:
    return 503 if attempt == 1 and seq % 20 == 0 else 200


def events() -> Iterator[Event]:
    """Without end, in about the order of their times, some entities busier than others."""
    chance = random.Random(7)
    for first in count(0, SHUFFLED):
        numbers = list(range(first, first + SHUFFLED))
        chance.shuffle(numbers)
        for number in numbers:
            some = BUSY_ENTITIES if chance.random() < 1 / 4 else ENTITIES
            yield f"u{chance.randrange(some)}", moment(number)


def kill_at_work(relay: Program, engine: Engine) -> None:
    """SIGKILL a relay that certainly works on something: it is stopped first, so that it can't end it meanwhile."""

    def caught_at_work() -> bool:
        relay.send(signal.SIGSTOP)
        if in_flight_of(engine, relay.pid):
            return True
        relay.send(signal.SIGCONT)
        return False

    until(caught_at_work, "the relay has something in flight", within=20)
    relay.kill()


def kill_workers(receiver: Program, most: int) -> None:
    before = receiver.children()
    for pid in before[:most]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: set(receiver.children()) - set(before), "gunicorn started another worker")


def kill_them_under_load(place: Site, receiver: Program, downstream: Downstream, engine: Engine) -> None:
    relays = [place.relay() for _ in range(RELAYS)]
    for number in range(KILLS):
        arrived = len(downstream.arrivals)
        until(
            lambda: len(downstream.arrivals) >= arrived + ARRIVALS_BETWEEN_KILLS,  # noqa: B023  # called in this round
            "work goes on while the killed relays' leases last",
            within=20,
        )
        if number in KILLED_WORKERS:
            kill_workers(receiver, KILLED_WORKERS[number])
        kill_at_work(relays[number % RELAYS], engine)
        relays[number % RELAYS] = place.relay()


def test_what_was_acknowledged_arrives_in_order_though_relays_and_receivers_are_killed(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl", unwell_now_and_then, SECONDS_DOWNSTREAM) as downstream:
        config = config_text(database_url, downstream.url, schedule=("200ms", "1s", "5s", "5s", "5s"))
        with site(tmp_path, config) as place:
            receiver, port = place.receiver(workers=2 if is_postgres(database_url) else 1)
            sender = Sender(tmp_path / "sends.jsonl", port, events(), per_second=PER_SECOND)
            try:
                kill_them_under_load(place, receiver, downstream, engine)
                sender.enough()
                until(lambda: sender.is_done, "every event is acknowledged", within=30)
            finally:
                sender.stop()
            until(lambda: not open_states(engine), "everything is delivered", within=DRAINED_WITHIN, poll=0.2)
            assert is_ready(port)
            logs = place.logs()
        sends, arrivals = sender.sends.lines(), downstream.arrivals.lines()

    log, inbox = facts(engine), stored(engine)
    assert checkers.lost(sends, arrivals) == []
    assert checkers.phantoms(sends, arrivals) == []
    assert checkers.two_numbers(sends, inbox) == []
    assert checkers.unfinished(inbox, log) == []
    assert checkers.out_of_order(arrivals, log) == []
    assert checkers.passed_over(sends, arrivals) == []
    assert checkers.unexplained_repeats(arrivals, log) == []
    assert checkers.attempts_called_twice(arrivals) == []
    assert checkers.complaints(logs) == []
    # What was to be shown did happen.
    assert len(inbox) >= KILLS * ARRIVALS_BETWEEN_KILLS
    killed_at_work = {fact["detail"]["relay_node"] for fact in log if fact["kind"] == "abandoned"}
    assert len(killed_at_work) >= KILLS - 1  # one may have been recording its last result
    assert {line["outcome"] for line in sends} >= {"ok", "unknown"}
    assert any(fact["kind"] == "attempt_failed" for fact in log)
    late = sum(bool(fact["detail"].get("late")) for fact in log)
    assert 0 < late < len(inbox)
