"""`/events/{seq}`: one event, what became of it on each route, what it waits for, and who saw its payload."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from inbox.config.model import Config
from inbox.db.event_reads import EventRead, event_without_payload
from inbox.db.reads import Row
from inbox.errors import NothingThere
from relay.store import reveals
from relay.web.query import Number
from relay.web.reading import Reading, Screen, rows_of
from relay.web.screens.deliveries import acts_of
from relay.words import both_times, commands_for, fact_in_words, held_back, next_step, shown_state

View = Literal["pretty", "raw", "hex"]
MOST_FACTS_OF_A_ROUTE = 40
"""The newest facts of a route are shown."""


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The event."""

    seq: Number
    """Its number."""
    view: View = "pretty"
    """Form in which its body is shown once it is revealed."""


class HttpCall(msgspec.Struct, frozen=True):
    """An HTTP call of an attempt."""

    step: str
    method: str
    url: str
    outcome: str
    """HTTP status of the answer; `not_sent` or `unknown` where there was none."""
    milliseconds: float
    error: str | None
    excerpt: str | None
    """The beginning of an answer that is no success, redacted; absent for viewers."""


class FactShown(msgspec.Struct, frozen=True):
    """A fact of a route."""

    id: int
    at: datetime
    kind: str
    attempt: int
    says: str
    """It in one sentence; values in it are escaped."""
    tone: str
    """`good`, `warn`, `bad` or nothing."""
    relay_node: str | None
    calls: tuple[HttpCall, ...]


class Hold(msgspec.Struct, frozen=True):
    """A gate that holds a delivery back."""

    says: str
    command: str
    """Command that opens it; empty where it opens by itself."""


class RouteProgress(msgspec.Struct, frozen=True):
    """The event on one route."""

    route: str
    state: str
    """As listings show it: `retrying` while it waits for its next attempt."""
    is_configured: bool
    attempts: int
    due_at: datetime | None
    lane: str | None
    last_error: str | None
    last_status: int | None
    next: str
    """The next step, in one sentence."""
    holds: tuple[Hold, ...]
    facts: tuple[FactShown, ...]
    """The newest facts, the oldest first."""
    earlier_facts: int
    """Facts before those."""
    head_seq: int | None
    """The head of its lane, where it is another event."""
    waiting: int | None
    """Deliveries that wait in its lane, counted up to 501; None: it has ended."""
    superseded_by: int | None
    commands: tuple[str, ...]
    acts: tuple[str, ...]
    """Acts that change it, for operators: `/acts/ACT?seq=…&route=…`."""


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
    found = event_without_payload(reading.database.engine, query.seq)
    if found is None:
        raise NothingThere(
            f"there is no event {query.seq}: none was stored under this number yet, or retention has deleted it"
        )
    event = found.event
    return EventPage(
        event=event,
        payload="erased" if event["erased_at"] is not None else "pruned" if event["is_pruned"] else "stored",
        routes=tuple(_progress(found, row, reading) for row in found.deliveries),
        has_earlier_facts=found.has_earlier_facts,
        duplicates=tuple(found.duplicates),
        times=sum(row["times"] for row in found.duplicates),
        previous_seq=found.previous_seq,
        next_seq=found.next_seq,
        reveals=tuple(reveals.of_event(reading.database, query.seq)),
        cli=f"inbox show {query.seq}",
        sql="\n".join(
            f"SELECT * FROM {table} WHERE seq = {query.seq}{order};"
            for table, order in (("delivery", ""), ("delivery_log", " ORDER BY id"), ("open_delivery", ""))
        ),
    )


def _progress(found: EventRead, row: Row, reading: Reading) -> RouteProgress:
    now, config, actor = reading.now, reading.config, reading.actor
    about = {**found.event, "gates": found.gates, "relays": found.relays}
    state = shown_state(row, now)
    lane = next((lane for lane in found.lanes if lane["route"] == row["route"]), None)
    seq = found.event["seq"]
    is_behind = lane is not None and lane["head_seq"] not in (None, seq)
    head = {"seq": lane["head_seq"], "state": lane["head_state"]} if lane is not None and is_behind else None
    holds = tuple(_holds(about, row, config, now)) if state in {"ready", "retrying"} else ()
    facts = [fact for fact in found.facts if fact["route"] == row["route"]]
    is_gone = found.event["is_pruned"] or found.event["erased_at"] is not None  # nothing could be delivered
    commands = [hold.command for hold in holds if hold.command]
    commands += [] if is_gone else commands_for(seq, row, state, head, is_held=bool(holds))
    acts = tuple(act for act in acts_of(state) if not (is_gone and act in {"replay", "retry"}))
    return RouteProgress(
        route=row["route"],
        state=state,
        is_configured=row["route"] in config.routes,
        attempts=row["attempts"],
        due_at=row["due_at"],
        lane=row["lane"],
        last_error=row["last_error"],
        last_status=row["last_status"],
        next=next_step(about, row, state, head, now, is_held=bool(holds)),
        holds=holds,
        facts=tuple(fact_shown(fact, with_excerpts=actor.may_act) for fact in facts[-MOST_FACTS_OF_A_ROUTE:]),
        earlier_facts=max(len(facts) - MOST_FACTS_OF_A_ROUTE, 0),
        head_seq=None if head is None else head["seq"],
        waiting=None if lane is None else lane["waiting"],
        superseded_by=row["superseded_by"],
        commands=tuple(commands),
        acts=acts if actor.may_act else (),
    )


def _holds(about: Row, row: Row, config: Config, now: datetime) -> Iterator[Hold]:
    for says, command in held_back(about, row, config, now):
        yield Hold(says, command)


_TONES = {"green": "good", "yellow": "warn", "red": "bad"}


def fact_shown(fact: Row, *, with_excerpts: bool) -> FactShown:
    """Put a row of `delivery_log` into words, with its calls. A detail of another form, as a hand may write, shows as it can."""
    detail = fact["detail"] if isinstance(fact["detail"], dict) else {}
    says, colour = fact_in_words(fact["kind"], fact["attempt"], detail)
    calls = detail.get("calls")
    return FactShown(
        id=fact["id"],
        at=fact["at"],
        kind=fact["kind"],
        attempt=fact["attempt"],
        says=says,
        tone=_TONES.get(colour, ""),
        relay_node=fact["relay_node"],
        calls=tuple(
            _call(call, with_excerpts=with_excerpts)
            for call in (calls if isinstance(calls, list) else ())
            if isinstance(call, dict)
        ),
    )


def _call(call: Row, *, with_excerpts: bool) -> HttpCall:
    took = call.get("milliseconds")
    error, excerpt = call.get("error"), call.get("excerpt")
    return HttpCall(
        step=str(call.get("step", "")),
        method=str(call.get("method", "")),
        url=str(call.get("url", "")),
        outcome=str(call.get("status") or call.get("sent", "")),
        milliseconds=_milliseconds(took),
        error=None if error is None else str(error),
        excerpt=str(excerpt) if excerpt is not None and with_excerpts else None,
    )


def _milliseconds(took: object) -> float:
    try:
        return float(took) if isinstance(took, int | float) else 0.0
    except OverflowError:
        return 0.0


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
