"""Reads a service's listing page by page: ids, times of the last change, and the entities, with bounded memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import tenacity
from tenacity import wait_exponential
from tenacity.wait import wait_base

from inbox.config.sync import Listing, Sweep
from inbox.config.values import Unit
from inbox.errors import ConfigError, InvalidEvent, MappingError, SweepFailed, UnusableAnswer, collect_config_errors
from inbox.events.strict_json import has_more_marks
from inbox.events.timestamps import rfc3339
from inbox.sources.fields import LONGEST_ID, text_field
from relay.delivery.outcome import Call, ErrorClass
from relay.destinations.base import Caller, Context
from relay.http.answer import Answer
from relay.http.client import Request
from relay.sync.calls import CallPlan, compile_call, reported_error
from relay.sync.cursor import UNTOLD, Listed
from relay.sync.expressions import Expression, Scope, decode, encode
from relay.sync.forms import instant_of
from relay.sync.paging import OF_LISTING, ChunkPlan, PagesPlan, Paginator, compile_chunks, compile_pages, names_of
from relay.sync.templates import SearchTemplate

MOST_BYTES = 32 * 1024 * 1024
"""The largest page."""
MOST_MARKS = 1_000_000
"""The most brackets, commas and colons in a page: parsed, they took up to 133 MiB (fractions); 32 MiB of small lists took 807."""
SMALL = 32
"""A page is small up to this part of both. All small ones are read at once, of larger ones the process has one at a time."""
_LARGE_PAGE = threading.Lock()
_TRANSIENT: frozenset[ErrorClass] = frozenset({"not_sent", "unknown", "throttled", "server_error"})
"""Errors after which a page is asked for again."""
TRIES = 3
WAIT: wait_base = wait_exponential(multiplier=0.5, exp_base=4)
WAITED_AT_A_TIME = 1.0
"""Seconds; in between, the caller renews the sweep's lease, or stops the sweep."""
LONGEST_RETRY_AFTER = 20.0
"""The longest wait that a source may ask for, in seconds: a relay has to renew its turn."""
_SMALLER_PAGES = "ask for less by pages.count"


class Unlisted(msgspec.Struct, frozen=True):
    """An item of a page that names no entity, or no time of its last change."""

    digest: bytes
    """SHA-256 of the item."""
    why: str


Entry = Listed | Unlisted
Found = TypeVar("Found")


class Page(msgspec.Struct, frozen=True):
    """The new entities of a page."""

    entities: Sequence[Listed] = ()
    items: Mapping[Listed, Any] = {}
    """Each entity as the page has it."""
    unlisted: Sequence[Unlisted] = ()


BEFORE_A_CALL = Page()
"""The page that is yielded before each call, so that the caller can enforce a rate limit first."""


class Pages:
    """A listing of all entities of a service, or of those that have changed."""

    def __init__(self, table: Sweep | Listing, where: str, caller: Caller) -> None:
        """Compile it.

        Raises:
            ConfigError: a template or an expression is wrong; `where` names the table.
        """
        self._caller = caller
        self._parts = SMALL
        """1 from the first page on that was not small."""
        self.held_by: Call | None = None
        """The last call whose answer asked for no further call for some time; None since it was heeded."""
        known = {"since"} if isinstance(table, Sweep) else {"ids"} if table.ids is not None else set[str]()
        modified = table.modified if isinstance(table, Sweep) else None
        self._unit: Unit = table.time_unit if isinstance(table, Sweep) else "rfc3339"
        parts: dict[str, Callable[[], Any]] = {
            "plan": lambda: _plan(table, where, known),
            "items": lambda: Expression(table.items, f"{where}.items", None),
            "id": lambda: Expression(table.id, f"{where}.id", None),
            "chunks": lambda: _chunks(table, f"{where}.ids"),
            "modified": lambda: None if modified is None else Expression(modified, f"{where}.modified", None),
        }
        made = collect_config_errors(parts)
        self._plan: PagesPlan = made["plan"]
        self.chunks: ChunkPlan | None = made["chunks"]
        """The rule for the ids of a call, where the listing is asked for ids."""
        self._items: Expression = made["items"]
        self._id: Expression = made["id"]
        self._modified: Expression | None = made["modified"]

    @property
    def call(self) -> CallPlan:
        """The call for each page after the first."""
        return self._plan.further

    def since(self, since: datetime, context: Context) -> Iterator[Page]:
        """Yield what was changed at or after `since`, page by page, in the service's order; errors as `everything`."""
        yield from self.everything(context, {"since": rfc3339(since)})

    def everything(self, context: Context, scope: Scope) -> Iterator[Page]:
        """Yield everything that the call lists, page by page, in the service's order. Its templates read `scope`.

        Entities that change meanwhile may come twice. By start, those that don't come at least once. A page that can't be
        fetched is tried three times; BEFORE_A_CALL comes before each try.

        Raises:
            SweepFailed: a page can't be fetched or read, the pages repeat, or move too fast to be followed.
        """
        paginator = Paginator[Entry](self._plan, scope, self._caller.base, overlaps=True)
        while not paginator.is_at_end:
            document: Any = None
            link: str | None = None
            with ExitStack() as room:
                for attempt in _retrying(context):
                    room.close()
                    yield BEFORE_A_CALL
                    while self._parts == 1 and not _LARGE_PAGE.acquire(timeout=WAITED_AT_A_TIME):
                        yield Page()
                    if self._parts == 1:
                        room.callback(_LARGE_PAGE.release)
                    with attempt:
                        document, link = self._answer(paginator, context)
                yield self._page(paginator, document, link)

    def _answer(self, paginator: Paginator[Entry], context: Context) -> tuple[Any, str | None]:
        """Fetch a page. Return its JSON, and its `Link` header."""
        try:
            (path, query), body, own = paginator.at, paginator.body, paginator.headers
        except MappingError as error:
            raise SweepFailed(str(error)) from None
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = paginator.call.media_type
        call = paginator.call
        most = MOST_BYTES // self._parts
        request = Request(
            "fetch", call.method, headers, path, query, body, most=most, own_headers=own, template=call.path.text
        )
        answer = self._caller.call(request, context)
        if answer.call.hold is not None and answer.call.sent != "not_sent":
            self.held_by = answer.call
        _require_success(answer)
        if self._parts > 1 and (not answer.whole or has_more_marks(answer.body, MOST_MARKS // self._parts)):
            self._parts = 1
            raise SweepFailed("a page is large", passes=True)
        if not answer.whole:
            raise SweepFailed(f"a page is larger than {MOST_BYTES // 2**20} MiB; {_SMALLER_PAGES}")
        if has_more_marks(answer.body, MOST_MARKS):
            raise SweepFailed(f"a page has more than {MOST_MARKS:,} brackets, commas and colons; {_SMALLER_PAGES}")
        try:
            document = decode(answer.body)
            reported = reported_error(paginator.call.rules, document)
        except ValueError as error:
            raise SweepFailed(f"a page is {error}") from None
        except UnusableAnswer as error:
            raise SweepFailed(str(error)) from None
        if reported is not None:
            _require_success(answer.reporting(reported.error_class, reported.text))
        return document, answer.link

    def _page(self, paginator: Paginator[Entry], document: Any, link: str | None) -> Page:  # noqa: ANN401  # any JSON
        try:
            found = self._items.value(document)
        except MappingError:
            raise SweepFailed("items can't be evaluated on a page") from None
        if found is None and self._plan.total_in(document) == 0:
            found = []  # SCIM leaves the list out then (RFC 7644 §3.4.2)
        if not isinstance(found, list):
            raise SweepFailed("a page has no list where items says")
        entries = [self._entry(item) for item in found]
        if entries and all(isinstance(entry, Unlisted) for entry in entries):
            raise SweepFailed(getattr(entries[0], "why", ""))
        try:
            fresh = paginator.take(document, link, entries)
        except UnusableAnswer as error:
            raise SweepFailed(str(error)) from None
        items = {entry: item for entry, item in zip(entries, found, strict=True) if isinstance(entry, Listed)}
        entities, unlisted = _of(Listed, fresh), _of(Unlisted, fresh)
        return Page(entities, {entity: items[entity] for entity in entities}, unlisted)

    def _entry(self, item: Any) -> Entry:  # noqa: ANN401  # any JSON
        """Read an item. One that can't be read is an entry too: the others of its page go on."""
        try:
            return self._listed(item)
        except SweepFailed as error:
            return Unlisted(hashlib.sha256(encode(item)).digest(), str(error))

    def _listed(self, item: Any) -> Listed:  # noqa: ANN401  # any JSON
        try:
            entity_id = self._id.value(item)
            if not isinstance(entity_id, str | int) or isinstance(entity_id, bool):
                raise SweepFailed("an entity in a page has no id where it is said to be")
            named = text_field({"id": str(entity_id)}, "id", LONGEST_ID)  # as a webhook could name it
            if self._modified is None:
                return Listed(named, UNTOLD)
            modified = self._modified.value(item)
            if modified is None:
                raise SweepFailed("an entity in a page has no time of its last change where it is said to be")
            return Listed(named, instant_of(modified, self._unit))
        except InvalidEvent as error:
            raise SweepFailed(f"an entity in a page can't be stored: {error}") from None
        except MappingError as error:
            raise SweepFailed(f"an entity in a page can't be read: {error}") from None
        except ValueError as error:
            reason = f"the time of an entity's last change can't be read: it {error}"
            raise SweepFailed(f"{reason}; time_unit says which form it has") from None


def _chunks(table: Sweep | Listing, where: str) -> ChunkPlan | None:
    return None if isinstance(table, Sweep) or table.ids is None else compile_chunks(table.ids, where)


def _plan(table: Sweep | Listing, where: str, known: set[str]) -> PagesPlan:
    names = known | names_of(table.pages)
    call = compile_call(
        where,
        names,
        method=table.method,
        path=table.path,
        params=table.query,
        body=table.body,
        texts=SearchTemplate,
        keys=table,
    )
    if "ids" in known and not call.looks_into("ids"):
        raise ConfigError(
            f'{where}: no param has {{ids}}, which {where}.ids is about; write params = {{ NAME = "{{ids}}" }}'
        )
    return compile_pages(table.pages, f"{where}.pages", call, known, OF_LISTING)


def _require_success(answer: Answer) -> None:
    if answer.error_class is not None:
        passes = answer.error_class in _TRANSIENT
        raise SweepFailed(answer.failed(()).error, passes=passes, retry_after=answer.retry_after)


def _of(kind: type[Found], entries: Sequence[Entry]) -> list[Found]:
    return [entry for entry in entries if isinstance(entry, kind)]


def _retrying(context: Context) -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, SweepFailed) and error.passes),
        wait=_wait,
        stop=tenacity.stop_after_attempt(TRIES) | tenacity.stop_when_event_set(context.stop),
        sleep=tenacity.sleep_using_event(context.stop),
        reraise=True,
    )


def _wait(state: tenacity.RetryCallState) -> float:
    """Wait as long as the source asks for, or else exponentially longer."""
    error = None if state.outcome is None else state.outcome.exception()
    asked = error.retry_after if isinstance(error, SweepFailed) else None
    return WAIT(state) if asked is None else min(asked, LONGEST_RETRY_AFTER)
