"""Reads a service's listing page by page: ids, times of the last change, and the entities, with bounded memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from inbox.config.sync import Sweep
from inbox.errors import InvalidEvent, MappingError, SweepFailed, UnusableAnswer, collect_config_errors
from inbox.events.strict_json import has_more_marks
from inbox.events.timestamps import rfc3339
from inbox.sources.fields import LONGEST_ID, text_field
from relay.delivery.outcome import Call, ErrorClass
from relay.destinations.base import Context
from relay.http.answer import Answer
from relay.http.client import HttpClient, Request
from relay.store.sweeps import Listed
from relay.sync.calls import evaluated, reported_error
from relay.sync.expressions import Expression, decode, encode
from relay.sync.forms import instant_of
from relay.sync.paging import PagesPlan, Paginator, compile_pages

MOST_BYTES = 8 * 1024 * 1024
"""The largest page."""
MOST_MARKS = 250_000
"""The most brackets, commas and colons in a page: parsed, they take up to 33 MiB (fractions)."""
ONE_PAGE = threading.Lock()
"""Parsed, a page takes many times its bytes: a process has one at a time, while pages of other apis are fetched."""
_TRANSIENT: frozenset[ErrorClass] = frozenset({"not_sent", "unknown", "throttled", "server_error"})
"""Errors after which a page is asked for again."""
TRIES = 3
FIRST_WAIT_SECONDS = 0.5
"""The wait before the second try; the next one is four times as long."""
LONGEST_RETRY_AFTER = 20.0
"""The longest wait that a source may ask for, in seconds: a relay has to renew its turn."""


class Unlisted(msgspec.Struct, frozen=True):
    """An item of a page that names no entity, or no time of its last change."""

    digest: bytes
    """SHA-256 of the item."""
    why: str


Entry = Listed | Unlisted


class Page(msgspec.Struct, frozen=True):
    """The new entities of a page, each as the page has it."""

    entities: Mapping[Listed, Any] = {}
    unlisted: Sequence[Unlisted] = ()


BEFORE_A_CALL = Page()
"""The page that is yielded before each call, so that the caller can enforce a rate limit first."""


class Pages:
    """A listing of the entities of a service that have changed."""

    def __init__(self, table: Sweep, where: str, caller: HttpClient) -> None:
        """Compile it.

        Raises:
            ConfigError: a template or an expression is wrong; `where` names the table.
        """
        self._caller = caller
        self.held_by: Call | None = None
        """The last call whose answer asked for no further call for some time; None since it was heeded."""
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

    def since(self, since: datetime, context: Context) -> Iterator[Page]:
        """Yield what was changed at or after `since`, page by page, in the service's order.

        Entities that change meanwhile may come twice. By start, those that don't come at least once. A page that can't be
        fetched is tried three times; BEFORE_A_CALL comes before each try.

        Raises:
            SweepFailed: a page can't be fetched or read, the pages repeat, or move too fast to be followed.
        """
        paginator = Paginator[Entry](self._plan, {"since": rfc3339(since)}, self._caller.base)
        wait, tries_left = FIRST_WAIT_SECONDS, TRIES
        while not paginator.is_at_end:
            yield BEFORE_A_CALL
            try:
                answer = self._answer(paginator, context)
                with ONE_PAGE:
                    yield self._page(paginator, answer)
            except (MappingError, UnusableAnswer) as error:
                raise SweepFailed(str(error)) from None
            except SweepFailed as error:
                tries_left -= 1
                asked = wait if error.retry_after is None else min(error.retry_after, LONGEST_RETRY_AFTER)
                if not error.passes or not tries_left or context.stop.wait(asked):
                    raise
                wait *= 4
            else:
                wait, tries_left = FIRST_WAIT_SECONDS, TRIES

    def _answer(self, paginator: Paginator[Entry], context: Context) -> Answer:
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
            raise SweepFailed(f"a page is larger than {MOST_BYTES // 2**20} MiB; ask for less by pages.count")
        if has_more_marks(answer.body, MOST_MARKS):
            raise SweepFailed(
                f"a page has more than {MOST_MARKS:,} brackets, commas and colons; ask for less by pages.count"
            )
        return answer

    def _page(self, paginator: Paginator[Entry], answer: Answer) -> Page:
        try:
            document = decode(answer.body)
        except ValueError as error:
            raise SweepFailed(f"a page is {error}") from None
        reported = reported_error(paginator.call.rules, document)
        if reported is not None:
            _require_success(answer.reporting(*reported))
        found = evaluated(self._items, document)
        if found is None and self._plan.total_in(document) == 0:
            found = []  # SCIM leaves the list out then (RFC 7644 §3.4.2)
        if not isinstance(found, list):
            raise SweepFailed("a page has no list where items says")
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


def _require_success(answer: Answer) -> None:
    if answer.error_class is not None:
        passes = answer.error_class in _TRANSIENT
        raise SweepFailed(answer.failed(()).error, passes=passes, retry_after=answer.retry_after)
