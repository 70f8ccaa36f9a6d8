"""Reads a service's listing page by page: ids, and times of the last change, with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import tenacity
from tenacity import wait_exponential
from tenacity.wait import wait_base

from inbox.config.sweep import Listing, Sweep
from inbox.errors import InvalidEvent, MappingError, SweepFailed
from inbox.events.strict_json import has_more_marks
from inbox.events.timestamps import parse_rfc3339, to_datetime
from inbox.sources.fields import LONGEST_ID, text_field
from relay.delivery.outcome import ErrorClass
from relay.destinations.base import Caller, Context
from relay.http.client import Request
from relay.sync.calls import compile_call
from relay.sync.cursor import UNTOLD, Listed, OffsetCursor
from relay.sync.expressions import Expression, decode

MOST_BYTES = 32 * 1024 * 1024
"""The largest page."""
MOST_MARKS = 1_000_000
"""The most brackets, commas and colons in a page: parsed, they took up to 133 MiB (fractions); 32 MiB of small lists took 807."""
_ASKED = {"since", "start", "count"}
_TRANSIENT: frozenset[ErrorClass] = frozenset({"not_sent", "unknown", "throttled", "server_error"})
"""Errors after which a GET is repeated."""
TRIES = 3
WAIT: wait_base = wait_exponential(multiplier=0.5, exp_base=4)
LONGEST_RETRY_AFTER = 20.0
"""The longest wait that a source may ask for, in seconds: a relay has to renew its turn."""

BEFORE_A_CALL: Sequence[Listed] = ()
"""The page that is yielded before each call, so that the caller can enforce a rate limit first."""


class Pages:
    """A listing of all entities of a service, or of those that have changed."""

    def __init__(self, table: Sweep | Listing, where: str, caller: Caller) -> None:
        """Compile it.

        Raises:
            ConfigError: a template or an expression is wrong; `where` names the table.
        """
        self._table = table
        self._caller = caller
        self._call = compile_call(where, _ASKED, method="GET", path=table.path, params=table.params)
        self._items = Expression(table.items, f"{where}.items", None)
        self._id = Expression(table.id, f"{where}.id", None)
        modified = table.modified if isinstance(table, Sweep) else None
        self._modified = None if modified is None else Expression(modified, f"{where}.modified", None)

    def since(self, since: datetime, context: Context) -> Iterator[Sequence[Listed]]:
        """Yield what was changed at or after `since` (of a listing: everything), page by page, in the service's order.

        Entities that change meanwhile may come twice; those that don't come at least once. A page that can't be fetched is
        tried three times; BEFORE_A_CALL comes before each try.

        Raises:
            SweepFailed: a page can't be fetched or read, the pages repeat, or move too fast to be followed.
        """
        place = OffsetCursor(self._table.first, self._table.count)
        while not place.is_at_end:
            page: list[Listed] = []
            for attempt in _retrying(context):
                yield BEFORE_A_CALL
                with attempt:
                    page = self._page(since, place.start, context)
            yield place.advance(page)

    def _page(self, since: datetime, start: int, context: Context) -> list[Listed]:
        asked = {"since": since.isoformat().replace("+00:00", "Z"), "start": start, "count": self._table.count}
        path, query = self._call.path.expand(asked), self._call.query(asked)
        request = Request("fetch", "GET", {"Accept": "application/json"}, path, query, most=MOST_BYTES)
        answer = self._caller.call(request, context)
        if answer.error_class is not None:
            passes = answer.error_class in _TRANSIENT
            raise SweepFailed(answer.failed(()).error, passes=passes, retry_after=answer.retry_after)
        if not answer.whole:
            raise SweepFailed(f"a page is larger than {MOST_BYTES // 2**20} MiB; ask for less by count")
        if has_more_marks(answer.body, MOST_MARKS):
            raise SweepFailed(f"a page has more than {MOST_MARKS:,} brackets, commas and colons; ask for less by count")
        try:
            found = self._items.value(decode(answer.body))
        except ValueError as error:
            raise SweepFailed(f"a page is {error}") from None
        except MappingError:
            raise SweepFailed("items can't be evaluated on a page") from None
        if not isinstance(found, list):
            raise SweepFailed("a page has no list where items says")
        return [self._listed(each) for each in found]

    def _listed(self, item: Any) -> Listed:  # noqa: ANN401  # any JSON
        try:
            entity_id = self._id.value(item)
            if not isinstance(entity_id, str | int) or isinstance(entity_id, bool):
                raise SweepFailed("an entity in a page has no id where it is said to be")
            named = text_field({"id": str(entity_id)}, "id", LONGEST_ID)  # as a webhook could name it
            if self._modified is None:
                return Listed(named, UNTOLD)
            modified = self._modified.value(item)
            if not isinstance(modified, str):
                raise SweepFailed("an entity in a page has no time of its last change where it is said to be")
            return Listed(named, to_datetime(parse_rfc3339(modified)))
        except InvalidEvent as error:
            raise SweepFailed(f"an entity in a page can't be stored: {error}") from None
        except (ValueError, MappingError):
            raise SweepFailed("the time of an entity's last change can't be read: it has to be RFC 3339") from None


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
