"""`/events/{seq}`: one event, what became of it on each route, what it waits for, and who saw its payload."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from inbox.db import reads
from inbox.db.reads import Row
from inbox.errors import NothingThere
from relay.store.reads import reveals_of
from relay.web.query import Number
from relay.web.reading import Reading, Screen, rows_of
from relay.web.screens.lists import acts_of
from relay.words import RouteProgress, both_times, is_gone, progress

View = Literal["pretty", "raw"]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The event."""

    seq: Number
    """Its number."""
    view: View = "pretty"
    """Form in which its body is shown once it is revealed."""


class EventPage(msgspec.Struct, frozen=True):
    """An event without headers and body: those show after a reveal."""

    event: Annotated[Row, rows_of("inbox", is_pruned={"type": "boolean"})]
    payload: Literal["stored", "pruned", "erased"]
    routes: tuple[RouteProgress, ...]
    has_earlier_facts: bool
    """Facts are read up to a bound: there are older ones."""
    duplicates: tuple[
        Annotated[Row, rows_of("duplicate_request", "seq", "body_sha256", "body", is_other={"type": "boolean"})], ...
    ]
    times: int
    """Requests in these duplicates."""
    previous_seq: int | None
    """The event of the same entity before this one."""
    next_seq: int | None
    reveals: tuple[Annotated[Row, rows_of("payload_reveal", "seq")], ...]
    """Last reveals of its payload, the newest first: `at`, `who` and `reason`."""
    cli: str
    sql: str
    """The same on the command line, and for psql or sqlite3."""


def read(reading: Reading, query: EventQuery) -> EventPage:
    """Read an event."""
    found = reads.event(reading.database.engine, query.seq)
    if found is None:
        raise NothingThere(
            f"there is no event {query.seq}: none was stored under this number yet, or retention has deleted it"
        )
    return EventPage(
        event={name: value for name, value in found.items() if name not in reads.PARTS},
        payload="erased" if found["erased_at"] is not None else "pruned" if found["is_pruned"] else "stored",
        routes=tuple(_progress(found, row, reading) for row in found["deliveries"]),
        has_earlier_facts=found["has_earlier_facts"],
        duplicates=tuple(found["duplicates"]),
        times=sum(row["times"] for row in found["duplicates"]),
        previous_seq=found["previous_seq"],
        next_seq=found["next_seq"],
        reveals=tuple(reveals_of(reading.database, query.seq)),
        cli=f"inbox show {query.seq}",
        sql="\n".join(
            f"SELECT * FROM {table} WHERE seq = {query.seq}{order};"
            for table, order in (("delivery", ""), ("delivery_log", " ORDER BY id"), ("open_delivery", ""))
        ),
    )


def _progress(found: Row, row: Row, reading: Reading) -> RouteProgress:
    may_act = reading.actor.may_act
    made = progress(found, row, reading.config, reading.now, with_excerpts=may_act)
    acts = (act for act in acts_of(made.state) if not (is_gone(found) and act in {"replay", "retry"}))
    return msgspec.structs.replace(made, acts=tuple(acts)) if may_act else made


SCREEN = Screen(
    name="event",
    path="/events/{seq}",
    title="Event",
    query=EventQuery,
    page=EventPage,
    read=read,
    template="event.html",
    in_menu=False,
    values={"both_times": both_times, "shown": None},
)
