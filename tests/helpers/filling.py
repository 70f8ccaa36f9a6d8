"""An inbox filled as the receiver fills it, before a relay starts, or after one has given up."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Engine
from tests.helpers.traffic import Event

from inbox.clock import SystemClock
from inbox.events.event import RawRequest
from inbox.sources.normalize import readers_of
from relay.delivery.outcome import Call, Failed
from relay.delivery.policy import policies
from relay.store import claim, record, sequence
from relay.store.database import Database
from tests.helpers.relaying import work_of
from tests.helpers.storing import Intake
from tests.helpers.webhooks import HEADERS, a_config, body


def fill(database_url: str, events: Iterable[Event]) -> list[int]:
    """Store these events, which are new, as the receiver reads them; gives their seqs."""
    read = readers_of(a_config(database_url))["trivore"]
    headers = {name.lower(): value for name, value in HEADERS.items()}
    requests = (RawRequest("trivore", headers, body(*event), SystemClock().now()) for event in events)
    stored = Intake(database_url).append(*(event for request in requests for event in read(request)))
    return [seq for seq in stored if seq is not None]


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
