"""Edited bodies: stored beside the event's own body, and delivered by the replay that names them.

An edit changes the body alone. The event keeps its entity, type and time, which decide its routes, lanes and order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice, zip_longest

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.errors import RequestError, UnusableCommand
from inbox.events.event import Event, RawRequest
from inbox.sources import build_preset
from inbox.sources.fields import body_value
from inbox.sources.normalize import make_events
from relay.delivery.outcome import Delivery
from relay.operations.asks import Selection
from relay.store import events
from relay.store.database import Database
from relay.store.statement import Statement, sql

MOST_DIFFERENCES = 50
"""Maximum number of differences that a plan shows."""
MOST_LOGGED = 20
"""Maximum number of changed fields that a fact names."""
MOST_NAMED = 10
"""Maximum number of events that a warning names."""
MOST_SHOWN = 200
"""Maximum characters of a field's name or value in a difference."""
_KEPT = ("event_type", "action", "occurred_at")
_ABSENT = object()
_encoder = msgspec.json.Encoder(decimal_format="number", order="sorted")
_LARGEST = 32 * 1024 * 1024
"""Limit for an event whose source is no longer configured."""


class FieldDifference(msgspec.Struct, frozen=True):
    """A field whose value differs."""

    field: str
    """JSON pointer (RFC 6901), such as `/items/0/price`; empty for the whole value."""
    before: str | None
    """The JSON of the value, or its beginning; None if the field is absent."""
    after: str | None


class Edit(msgspec.Struct, frozen=True):
    """The differences between an edited body and the event's own."""

    differences: tuple[FieldDifference, ...]
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[str, ...]:
        """The names of the first fields that differ."""
        return tuple(each.field for each in self.differences[:MOST_LOGGED])


def add(database: Database, seq: int, body: bytes) -> int:
    """Store an edited body of an event, and return its number. It stays until the event's payload is deleted."""
    with database.write() as transaction:
        return int(transaction.execute(_ADD, seq=seq, body=body)[0].id)


def find_edited(database: Database, seqs: Iterable[int]) -> set[int]:
    """Return those of these events that were replayed with an edited body."""
    with database.read() as transaction:
        return {row.seq for row in transaction.execute(_EDITED, wanted=sorted({*seqs}))}


def warn_of_edited(edited: Collection[int]) -> list[str]:
    """Return the warning of a replay without an edited body of these events, which had one before."""
    if not edited:
        return []
    more = f" and {len(edited) - MOST_NAMED:,} others" if len(edited) > MOST_NAMED else ""
    named = ", ".join(map(str, sorted(edited)[:MOST_NAMED]))
    return [f"Edited before: event {named}{more}. A replay without an edited body sends the original."]


def ask_for_route(routes: Iterable[str]) -> str:
    """Return the error of an edit of an event with deliveries on several routes."""
    return f"an edited body goes to one route: name {' or '.join(sorted({*routes}))}"


def examine_named(database: Database, config: Config, asked: Selection) -> Edit:
    """Compare the edited body that a replay names with the event's own. Raises like `examine`."""
    with database.read() as transaction:
        found = transaction.execute(_NAMED, id=asked.edited_body)
    if not found or found[0].seq != asked.seq:
        of = "" if not found else f"; it is of event {found[0].seq}: name this event as seq"
        why = of or ": it was never stored, or was deleted with the payload of its event"
        raise UnusableCommand(f"event {asked.seq} has no edited body {asked.edited_body}{why}", field="edited_body")
    return examine(config, read_editable(database, found[0].seq), found[0].body)


def read_editable(database: Database, seq: int) -> Delivery:
    """Read an event with its body.

    Raises:
        UnusableCommand: there is no such event, or its payload is deleted.
    """
    event = events.read_event(database, seq)
    if event is None or event.body is None:
        raise UnusableCommand(f"event {seq} has no body to edit: retention or erasure has deleted it", field="seq")
    return event


def examine(config: Config, event: Delivery, body: bytes) -> Edit:
    """Compare an edited body with the event's own.

    Raises:
        UnusableCommand: it is unchanged, too large or unreadable, or is about another entity.
    """
    own = event.body or b""
    source = config.sources.get(event.source)
    most = _LARGEST if source is None else source.max_body or build_preset(source).max_body
    if len(body) > most:
        raise _unusable(f"has {len(body):,} bytes; the source accepts {most:,}")
    before, after = _parse(own, event), _parse(body, event)
    if isinstance(after, RequestError):
        if not isinstance(before, RequestError):
            raise _unusable(f"can't be read: {after.detail}")
        before, after = _lines(own), _lines(body)
    differences = tuple(islice(list_differences(before, after), MOST_DIFFERENCES))
    if not differences:
        raise _unusable("has no change: replay the event without it")
    return Edit(differences, tuple(_compare_identities(config, event, body)))


def list_differences(before: object, after: object, field: str = "") -> Iterator[FieldDifference]:
    """Yield the fields that differ between two values. Members of objects and items of lists are compared one by one."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            pointer = f"{field}/{str(name).replace('~', '~0').replace('/', '~1')}"
            yield from list_differences(before.get(name, _ABSENT), after.get(name, _ABSENT), pointer)
    elif isinstance(before, list) and isinstance(after, list):
        for number, values in enumerate(zip_longest(before, after, fillvalue=_ABSENT)):
            yield from list_differences(*values, f"{field}/{number}")
    elif (was := _format(before)) != (becomes := _format(after)):
        yield FieldDifference(str(_cut(field)), _cut(was), _cut(becomes))


def _format(value: object) -> str | None:
    return None if value is _ABSENT else _encoder.encode(value).decode()


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _compare_identities(config: Config, event: Delivery, body: bytes) -> list[str]:
    """Return a warning for parts that stay as they are. A body that the source can't read alone has no identity."""
    was = _read(config, event, event.body or b"")
    if was is None or isinstance(was, RequestError):  # a part of a request, or an event of a sweep
        return []
    becomes = _read(config, event, body)
    if becomes is None or isinstance(becomes, RequestError):
        why = "it has several events" if becomes is None else becomes.detail
        raise _unusable(f"is no longer an event of the source: {why}")
    entities = [(each.entity_type, each.entity_id) for each in (was, becomes)]
    if entities[0] != entities[1]:
        shown = " and not ".join("/".join(str(part) for part in each if part is not None) for each in entities[::-1])
        raise _unusable(f"is about another entity, {shown}: send it to the receiver as an event of its own")
    differ = [name for name in _KEPT if getattr(was, name) != getattr(becomes, name)]
    return [f"The event keeps its {', '.join(differ)}, which the edited body has changed."] if differ else []


def _read(config: Config, event: Delivery, body: bytes) -> Event | RequestError | None:
    """Read a body as the source's one event; None if it has another number of events."""
    source = config.sources.get(event.source)
    if source is None:
        return None
    headers = {**event.headers, "content-type": event.content_type}
    raw = RawRequest(event.source, headers, body, event.received_at)
    try:
        found = make_events(source, build_preset(source), raw, ())
    except RequestError as error:
        return error
    return found[0] if len(found) == 1 else None


def _parse(body: bytes, event: Delivery) -> object:
    try:
        return body_value(body, event.content_type)
    except RequestError as error:
        return error


def _lines(body: bytes) -> dict[str, str]:
    """Return the lines of a body that is neither JSON nor a form."""
    lines = body.decode(errors="backslashreplace").splitlines()
    return {f"line {number}": line for number, line in enumerate(lines, 1)}


def _unusable(says: str) -> UnusableCommand:
    return UnusableCommand(f"the edited body {says}", field="edited_body")


_ADD = text("INSERT INTO edited_body (seq, body) VALUES (:seq, :body) RETURNING id")
_NAMED = text("SELECT seq, body FROM edited_body WHERE id = :id")
_EDITED = Statement(f"""
SELECT DISTINCT f.seq FROM {sql.look_up(sql.rows("wanted", seq="bigint"), "delivery_log f", "f.seq = wanted.seq")}
WHERE f.kind || '' = 'replayed' AND f.detail ->> 'edited_body' IS NOT NULL ORDER BY f.seq
""")
