"""An inbox filled through the real receiver, before a relay starts, or after one has given up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sqlalchemy import Engine

from relay.delivery.outcome import Call, Failed
from relay.delivery.policy import policies
from relay.store import claim, record, sequence
from relay.store.database import Database
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.relaying import work_of
from tests.helpers.sender import Event
from tests.helpers.webhooks import a_config, body

_TRIES = 10


def fill(database_url: str, events: Iterable[Event]) -> list[int]:
    """Send these events, as a sender does until each is acknowledged; gives their seqs."""

    async def send() -> list[int]:
        async with receiving(a_config(database_url)) as receiver:
            return list(await asyncio.gather(*(_acknowledged(receiver, body(*event)) for event in events)))

    return asyncio.run(send())


def give_up(engine: Engine, database_url: str, events: Iterable[Event], reason: str = "email: no value") -> list[int]:
    """Send these events, and have a relay give each up, as a mistake in a mapping makes it; gives their seqs."""
    return _attempt(engine, database_url, events, Failed((), "mapping", reason))


def fail_once(engine: Engine, database_url: str, events: Iterable[Event]) -> list[int]:
    """Send these events, and have the first attempt of each answered with 503 and an hour's `Retry-After`; gives their seqs."""
    call = Call("forward", "POST", "https://audit.example.com", "answered", 1.0, status=503)
    return _attempt(engine, database_url, events, Failed((call,), "server_error", "answered 503", retry_after=3600))


def _attempt(engine: Engine, database_url: str, events: Iterable[Event], outcome: Failed) -> list[int]:
    seqs = fill(database_url, events)
    database, known = Database(engine), policies(a_config(database_url))
    while sequence.sequence(work_of(database, known)):
        pass
    while claimed := claim.claim(work_of(database), [claim.Room(["everything"], 500)]):
        list(record.record(work_of(database, known), [(delivery, outcome) for delivery in claimed]))
    return seqs


async def _acknowledged(receiver: Receiver, payload: bytes) -> int:
    for _ in range(_TRIES):
        answer = await receiver.post(payload)
        if answer.status_code != 503:  # a busy machine's database may be late
            break
    assert answer.status_code == 200
    seq: int = answer.json["seq"]
    return seq
