"""A sweep: lists a source's changes, compares them with the inbox, and adds an event for each unreported one.

Both `relay sweep` and the daemon run sweeps. A sweep stores events with the receiver's statement, so only this package of
the relay depends on the way the receiver stores them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from inbox.config.model import Config
from inbox.config.routing import matches, select_routes
from inbox.config.sync import Sweep
from inbox.db import intake
from inbox.db.dialect import error_text, make_storable
from inbox.db.throughput import SOURCE, SWEPT
from inbox.errors import ConfigError, InvalidEvent, MappingError, SweepFailed, UnusableResponse, collect_config_errors
from inbox.events.event import Event, Identity, RawRequest, swept_parts
from inbox.events.strict_json import has_more_marks
from inbox.events.timestamps import rfc3339, to_nanoseconds
from inbox.sources import PRESETS
from inbox.sources.fields import LONGEST_ID, text_field
from inbox.sources.normalize import to_event
from relay.delivery.gates import RateLimit
from relay.delivery.outcome import Call, ErrorClass
from relay.delivery.policy import read_hold_request
from relay.destinations.base import Clients, Context
from relay.http.client import HttpClient, Request
from relay.http.response import CallResult
from relay.store import sweeps
from relay.store.database import Database
from relay.store.gates import acquire_rate, hold, read_hold_seconds
from relay.store.sweeps import Listed, SweepFindings
from relay.store.work import Work, process_in_parts
from relay.sync.calls import evaluate, find_error
from relay.sync.expressions import Expression, decode, encode
from relay.sync.forms import parse_instant
from relay.sync.paging import PagesPlan, Paginator, compile_pages
from relay.sync.templates import compile_templates, expand_templates

# --- Listings, read page by page with bounded memory: ids, times of the last change, and entities.


MOST_BYTES = 8 * 1024 * 1024
"""Largest page in bytes."""
MOST_MARKS = 250_000
"""Maximum number of brackets, commas and colons in a page. Parsed, such a page takes up to 33 MiB (if full of fractions)."""
ONE_PAGE = threading.Lock()
"""Held while a page is parsed, since a parsed page takes many times its bytes. Other pages are fetched meanwhile."""
_TRANSIENT: frozenset[ErrorClass] = frozenset({"not_sent", "unknown", "throttled", "server_error"})
"""Errors after which a page is requested again."""
TRIES = 3
FIRST_WAIT_SECONDS = 0.5
"""Wait before the second try. The wait before the third is four times as long."""
LONGEST_RETRY_AFTER = 20.0
"""Longest `Retry-After` of a source in seconds: the relay has to renew its lease."""


class Unlisted(msgspec.Struct, frozen=True):
    """An item of a page without an entity or the time of its last change."""

    digest: bytes
    """SHA-256 of the item."""
    why: str


Entry = Listed | Unlisted


class Page(msgspec.Struct, frozen=True):
    """The new entities of a page, as listed."""

    entities: Mapping[Listed, Any] = {}
    unlisted: Sequence[Unlisted] = ()


BEFORE_A_CALL = Page()
"""Page yielded before each call, so that the caller can enforce a rate limit."""


class Pages:
    """A listing of a service's changed entities."""

    def __init__(self, table: Sweep, where: str, caller: HttpClient) -> None:
        """Compile the listing.

        Raises:
            ConfigError: a template or an expression is wrong; `where` names the table.
        """
        self._caller = caller
        self.held_by: Call | None = None
        """The last call whose response asked to pause; None once the pause is recorded."""
        self._unit = table.time_unit
        parts: dict[str, Callable[[], Any]] = {
            key: partial(Expression, getattr(table, key), f"{where}.{key}", None) for key in ("items", "id", "modified")
        }
        parts["plan"] = partial(compile_pages, table, where)
        made = collect_config_errors(parts)
        self._plan: PagesPlan = made["plan"]
        self._items: Expression = made["items"]
        self._id: Expression = made["id"]
        self._modified: Expression = made["modified"]

    def read(self, since: datetime, context: Context) -> Iterator[Page]:
        """Yield the pages of entities changed at or after `since`, in the service's order.

        Entities that change meanwhile may come twice. With paging by `start`, all others come at least once. Each page gets
        three tries, and BEFORE_A_CALL is yielded before each.

        Raises:
            SweepFailed: a page can't be fetched or read, or the pages repeat or change too fast.
        """
        paginator = Paginator[Entry](self._plan, {"since": rfc3339(since)}, self._caller.base)
        wait, tries_left = FIRST_WAIT_SECONDS, TRIES
        while not paginator.is_at_end:
            yield BEFORE_A_CALL
            try:
                answer = self._answer(paginator, context)
                with ONE_PAGE:
                    yield self._page(paginator, answer)
            except (MappingError, UnusableResponse) as error:
                raise SweepFailed(str(error)) from None
            except SweepFailed as error:
                tries_left -= 1
                asked = wait if error.retry_after is None else min(error.retry_after, LONGEST_RETRY_AFTER)
                if not error.passes or not tries_left or context.stop.wait(asked):
                    raise
                wait *= 4
            else:
                wait, tries_left = FIRST_WAIT_SECONDS, TRIES

    def _answer(self, paginator: Paginator[Entry], context: Context) -> CallResult:
        (path, query), body, own = paginator.at, paginator.body, paginator.headers
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = paginator.call.media_type
        call = paginator.call
        request = Request(
            "fetch", call.method, headers, path, query, body, most=MOST_BYTES, own_headers=own, template=call.path.text
        )
        answer = self._caller.call(request, context)
        if answer.call.hold is not None:
            self.held_by = answer.call
        _require_success(answer)
        if not answer.whole:
            raise SweepFailed(f"a page is larger than {MOST_BYTES // 2**20} MiB; lower pages.count")
        if has_more_marks(answer.body, MOST_MARKS):
            raise SweepFailed(f"a page has more than {MOST_MARKS:,} brackets, commas and colons; lower pages.count")
        return answer

    def _page(self, paginator: Paginator[Entry], answer: CallResult) -> Page:
        try:
            document = decode(answer.body)
        except ValueError as error:
            raise SweepFailed(f"a page is {error}") from None
        reported = find_error(paginator.call.rules, document)
        if reported is not None:
            _require_success(answer.reporting(*reported))
        found = evaluate(self._items, document)
        if found is None and self._plan.total_in(document) == 0:
            found = []  # SCIM omits an empty list (RFC 7644 §3.4.2)
        if not isinstance(found, list):
            raise SweepFailed("a page has no list at items")
        entries = [self._entry(item) for item in found]
        unlisted = [entry for entry in entries if isinstance(entry, Unlisted)]
        if unlisted and len(unlisted) == len(entries):
            raise SweepFailed(unlisted[0].why)
        fresh = set(paginator.take(document, answer.link, entries))
        listed = {
            entry: item
            for entry, item in zip(entries, found, strict=True)
            if isinstance(entry, Listed) and entry in fresh
        }
        return Page(listed, [entry for entry in unlisted if entry in fresh])

    def _entry(self, item: Any) -> Entry:  # noqa: ANN401  # any JSON
        """Read an item. An unreadable item becomes an entry too, so that the rest of its page is processed."""
        try:
            return self._identify(item)
        except SweepFailed as error:
            return Unlisted(hashlib.sha256(encode(item)).digest(), str(error))

    def _identify(self, item: Any) -> Listed:  # noqa: ANN401  # any JSON
        try:
            entity_id = self._id.value(item)
            if not isinstance(entity_id, str | int) or isinstance(entity_id, bool):
                raise SweepFailed("an entity in a page has no id at the configured place")
            named = text_field({"id": str(entity_id)}, "id", LONGEST_ID)  # in the form of a webhook's id
            modified = self._modified.value(item)
            if modified is None:
                raise SweepFailed("an entity in a page has no time of its last change at the configured place")
            return Listed(named, parse_instant(modified, self._unit))
        except InvalidEvent as error:
            raise SweepFailed(f"an entity in a page can't be stored: {error}") from None
        except MappingError as error:
            raise SweepFailed(f"an entity in a page can't be read: {error}") from None
        except ValueError as error:
            reason = f"the time of an entity's last change can't be read: it {error}"
            raise SweepFailed(f"{reason}; set time_unit to its form") from None


def _require_success(answer: CallResult) -> None:
    if answer.error_class is not None:
        passes = answer.error_class in _TRANSIENT
        raise SweepFailed(answer.as_failed(()).error, passes=passes, retry_after=answer.retry_after)


# --- the sweep


STEP = "sweep"
EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)
"""Start of a listing of everything."""
WAITED_AT_A_TIME = 1.0
"""Longest uninterrupted wait in seconds. Between two waits the caller can renew the sweep's lease or stop the sweep."""
MARK = "sweep"
"""Key in a body that marks a swept event."""
MOST_ADDED_AT_ONCE = 256
"""Maximum number of events in a transaction, as in a batch of the receiver."""
MOST_BYTES_ADDED_AT_ONCE = 4 * 1024 * 1024
"""Maximum bytes of bodies in a transaction; a larger body gets its own transaction."""


class CompiledSweep:
    """A compiled table of `[[sources.NAME.sweeps]]`; runs one sweep at a time."""

    def __init__(self, config: Config, source: str, number: int) -> None:
        """Compile the sweep.

        Raises:
            ConfigError: a template or an expression is wrong, or its api can't be called as configured.
        """
        self.source = config.sources[source]
        self.table = self.source.sweeps[number]
        self.api = config.apis[self.table.api]
        self._routes = select_routes(source, config.routes.values())
        change = (self.table.entity_type, self.table.event_type, self.table.action)
        self._taken = [route.name for route in self._routes if matches(route.when, *change)]
        self._rate = None if self.api.rate is None else RateLimit(("api", self.api.name), self.api.rate, calls=1)
        where = f"sources.{source}.sweeps[{number}]"
        self._pages = Pages(self.table, where, Clients(config).api(self.table.api))
        self._traceparent: str | None = None
        self._left_out: set[Listed] = set()
        """Entities too large for the bodies of their events."""
        self._shape = None if self.table.event_body is None else _shape(self.table, f"{where}.event_body")
        self._most = self.source.max_body or PRESETS[self.source.preset].max_body
        """Largest body in bytes, as for webhooks of the source."""

    @property
    def subject(self) -> str:
        """Source and entity type, in words."""
        return f"{self.source.name} {self.table.entity_type}"

    def find_start(self, database: Database) -> tuple[datetime, datetime | None]:
        """Return the start time of the next comparison, and the watermark (None before the first sweep)."""
        before = sweeps.read_watermark(database, self.source.name, self.table.entity_type)
        return (EVERYTHING if before is None else before - timedelta(seconds=self.table.overlap)), before

    def run(
        self, work: Work, context: Context, since: datetime, *, dry: bool = False
    ) -> Generator[SweepFindings, None, None]:
        """Compare page by page, and yield the progress after each. No transaction is open during a call to the api.

        Events are added as they are found. The caller moves the watermark to `until` of the last progress. It waits
        for the end of the sweep, since pages need not be in the order of the changes. With `dry`, the sweep adds nothing.
        Changes younger than `grace` are left to the next sweep.

        An entity that can't be compared or added does not stop the others, but the sweep then fails at its end.

        Raises:
            SweepFailed: the listing could not be read to its end, or an entity could not be compared or added.
        """
        database, source, entity_type = work.database, self.source.name, self.table.entity_type
        now = context.now()
        young = now - timedelta(seconds=self.table.grace)
        swept = SweepFindings(source, entity_type, since, since)
        failed: list[str] = []
        self._traceparent = None if context.span is None else context.span.traceparent
        self._left_out.clear()
        yield swept
        for page in self._read_listing(database, since, context):
            if page is BEFORE_A_CALL:
                self._hold_gate(database)
                for _ in self._acquire_rate(database, context):
                    yield swept
            failed += [unlisted.why for unlisted in page.unlisted]
            old = [each for each in page.entities if each.modified <= young]
            lost = sweeps.find_missing(database, source, entity_type, old, self._taken)
            added = 0 if dry else self._add(work, lost, page.entities, now, failed)
            swept = msgspec.structs.replace(
                swept,
                until=max([swept.until, *(each.modified for each in old)]),
                compared=swept.compared + len(old),
                missed=swept.missed + len(lost),
                added=swept.added + added,
                left_out=len(self._left_out),
            )
            yield swept
        if failed:
            raise SweepFailed(f"{len(failed)} entities could not be compared or added, the first: {failed[0]}")

    def _read_listing(self, database: Database, since: datetime, context: Context) -> Iterator[Page]:
        """Read the listing. If its last response asks for a pause, hold the api's gate, even if the listing fails."""
        try:
            yield from self._pages.read(since, context)
        except SweepFailed:
            self._hold_gate(database)
            raise
        self._hold_gate(database)

    def _add(
        self,
        work: Work,
        lost: Sequence[Listed],
        items: Mapping[Listed, Any],
        now: datetime,
        failed: list[str],
    ) -> int:
        def process(some: Sequence[Listed]) -> int:
            return add_events(work.database, (self._event(each, items.get(each), now) for each in some))

        def quarantine_one(listed: Listed, error: Exception) -> int:
            failed.append(f"{_read_id(listed)}: {error_text(error)}")
            return 0

        return sum(process_in_parts(work, STEP, lost, process=process, quarantine_one=quarantine_one, name=_read_id))

    def _hold_gate(self, database: Database) -> None:
        """Hold the api's gate if the last response asked to pause: this sweep, deliveries and other relays then wait."""
        call, self._pages.held_by = self._pages.held_by, None
        if call is not None and call.hold is not None:
            request = read_hold_request(("api", self.api.name), call)
            if request is not None:
                hold(database, request)

    def _acquire_rate(self, database: Database, context: Context) -> Iterator[None]:
        """Wait in short steps until the api's rate limit and rate hold permit a call: an operator may end the hold."""
        key = ("api", self.api.name)
        while (
            seconds := read_hold_seconds(database, key) if self._rate is None else acquire_rate(database, self._rate)
        ) > 0:
            context.stop.wait(min(seconds, WAITED_AT_A_TIME))
            yield

    def _event(self, listed: Listed, item: Any, now: datetime) -> Event:  # noqa: ANN401  # any JSON
        table = self.table
        identity = Identity(
            entity_type=table.entity_type,
            entity_id=listed.id,
            event_type=table.event_type,
            action=table.action,
            occurred_ns=to_nanoseconds(listed.modified),
            key_parts=swept_parts(table.entity_type, listed.id),
            key_has_time=True,
        )
        raw = RawRequest(self.source.name, {"content-type": "application/json"}, self._body(listed, item), now)
        event = to_event(self.source, raw, identity, self._routes, raw.headers)
        return msgspec.structs.replace(event, traceparent=self._traceparent)

    def _body(self, listed: Listed, item: Any) -> bytes:  # noqa: ANN401  # any JSON
        """Encode the listed entity, marked as swept, or in the shape of the webhook's body. Omit an entity that is too large.

        Raises:
            MappingError: the shape can't be evaluated on this entity.
        """
        mark = {"entity_type": self.table.entity_type, "entity_id": listed.id, "modified": rfc3339(listed.modified)}
        if self._shape is None:
            body = encode({MARK: {**mark, "item": item}})
        else:
            body = encode({**expand_templates(self._shape, item), MARK: mark})
        if len(body) <= self._most:
            return body
        self._left_out.add(listed)
        why = f"the body would have {len(body)} bytes, but the source accepts {self._most}"
        return encode({MARK: {**mark, "left_out": why}})


def _shape(table: Sweep, where: str) -> Any:  # noqa: ANN401  # a tree of expressions
    """Compile `event_body`; ConfigError if an expression is wrong, or a key is reserved."""
    if MARK in (table.event_body or ()):
        raise ConfigError(f"{where}: the key {MARK!r} is reserved for swept events; use another key")
    return compile_templates(table.event_body, where, None, Expression)


def _read_id(listed: Listed) -> str:
    return f"id={make_storable(listed.id)!a}"


def add_events(database: Database, events: Iterable[Event]) -> int:
    """Store the new events as the receiver does, and return their number. Duplicates are not recorded."""
    return sum(_append(database, batch) for batch in _batches(events))


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Split the events into batches of bounded size, lazily: each is made after the previous one is stored."""
    batch: list[Event] = []
    size = 0
    for event in events:
        if batch and (len(batch) == MOST_ADDED_AT_ONCE or size + len(event.body) > MOST_BYTES_ADDED_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += len(event.body)
    if batch:
        yield batch


def _append(database: Database, batch: Sequence[Event]) -> int:
    with database.write() as transaction:
        seqs = intake.append(transaction.connection, batch)
    added = [event for event, seq in zip(batch, seqs, strict=True) if seq is not None]
    for event in added:
        database.tally.add(SOURCE, event.source, SWEPT, size=len(event.body))
    return len(added)
