"""Live refresh: one reader for all open pages, which sends what has changed over Server-Sent Events.

However many pages are open, the reader sends at most `STATEMENTS_PER_SECOND` to the database, and never more than half of the
time. It reads what has waited longest. Pages of the same role that show the same share a read.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol
from urllib.parse import urlencode

import msgspec
from falcon.asgi import Request, Response, SSEvent
from markupsafe import Markup

from inbox.clock import Clock
from inbox.errors import BadFilter, PageError, TooManyWatchers
from inbox.gunicorn_worker import ON_STOP
from inbox.observe.logs import fields, without_message
from relay.web.access.accounts import Actor, Role

LIVE_FIELD = "live"
"""Parameter of every screen: `live=0` makes a page that does not refresh itself."""
STATEMENTS_PER_SECOND = 4.0
LEAST_SECONDS_BETWEEN = 2.0
"""Seconds between two reads of the same page."""
SENT_AGAIN_SECONDS = 30.0
"""A page whose data stays the same is sent again after so long, for the times on it that are relative."""
MOST_WATCHERS = 100
MOST_OF_A_PERSON = 20
"""Pages that one person may watch, so that others find room."""
HEARTBEAT_SECONDS = 15.0
CHECKED_EVERY_SECONDS = 5.0
"""The person's right to look is checked so often."""
RETRY_MS = 3000
LONGEST_URL = 8000

_log = logging.getLogger(__name__)


class ShownPage(msgspec.Struct, frozen=True):
    """The inside of `<main>` of a page, as it was read."""

    html: str
    version: str
    """Changes with the data on it."""
    statements: int = 0
    """Number of statements that the read took."""


Read = Callable[[Actor, str], Awaitable[ShownPage]]


class Access(Protocol):
    """Middleware that says who asks, or raises PageError."""

    async def process_request(self, req: Request, resp: Response) -> None:
        """Set `req.context.actor`."""
        ...


def live_url(page: str, version: str) -> str | None:
    """Return the URL of the stream for a page, which shows this version. None: the page's own URL is too long for one."""
    return None if len(page) > LONGEST_URL else f"/live?{urlencode({'url': page, 'version': version})}"


def inside_of_main(html: str) -> str:
    """Return the inside of `<main>` of a page. Values on the page are escaped, so no other tag has this name."""
    return html.partition("<main")[2].partition(">")[2].rpartition("</main>")[0]


class Watcher:
    """One open page. It keeps only the latest view, however slowly its browser reads."""

    def __init__(self, version: str) -> None:
        self.version = version
        """Version that its browser shows, or will."""
        self.sent_at = float("-inf")
        self._view: ShownPage | None = None
        self._read_at: datetime | None = None
        self._news = asyncio.Event()
        self.is_stopped = False

    def stop(self) -> None:
        """End the wait for news, and all later ones."""
        self.is_stopped = True
        self._news.set()

    def offer(self, view: ShownPage, read_at: datetime, now: float) -> None:
        """Take a view that was just read, and keep it for the browser where it differs from the last, or that is old."""
        self._read_at = read_at
        if view.version != self.version or now - self.sent_at >= SENT_AGAIN_SECONDS:
            self._view, self.version, self.sent_at = view, view.version, now
        self._news.set()

    async def wait(self, seconds: float) -> list[SSEvent]:
        """Return what there is to send; nothing after `seconds` without news."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return []
        if not self.is_stopped:
            self._news.clear()
        view, self._view = self._view, None
        events = [] if view is None else [event_of("main", view.html, view.version)]
        if self._read_at is not None:
            events.append(event_of("at", self._read_at.strftime("%Y-%m-%d %H:%M:%S")))
        return events


class _Watched:
    """A page that somebody has open."""

    def __init__(self, actor: Actor, url: str) -> None:
        self.actor, self.url = actor, url
        self.watchers: dict[Watcher, str] = {}
        """With the name of the person."""
        self.read_at = float("-inf")


class Hub:
    """Reads the pages that are open. It belongs to one event loop."""

    def __init__(
        self,
        read: Read,
        clock: Clock,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepare it. `read` reads the page at a URL for a role; it may raise PageError."""
        self._read, self._clock, self._monotonic, self._sleep = read, clock, monotonic, sleep
        self._watched: dict[tuple[Role, str], _Watched] = {}
        self._reader: asyncio.Task[None] | None = None

    @property
    def watchers(self) -> int:
        """The number of open pages."""
        return sum(len(each.watchers) for each in self._watched.values())

    def require_room(self, name: str) -> None:
        """Check that a person may watch one more page.

        Raises:
            TooManyWatchers: there are as many as there may be, of this person or in all.
        """
        own = sum(each == name for watched in self._watched.values() for each in watched.watchers.values())
        if own >= MOST_OF_A_PERSON:
            raise TooManyWatchers(f"{own} of your pages refresh themselves already; close some, or reload this one")
        if self.watchers >= MOST_WATCHERS:
            raise TooManyWatchers(
                f"{MOST_WATCHERS} pages refresh themselves already; reload this one to see what is new"
            )

    @contextmanager
    def watching(self, role: Role, url: str, watcher: Watcher, name: str = "") -> Iterator[None]:
        """Offer the watcher of a person what is read of a page, until the block ends."""
        watched = self._watched.setdefault((role, url), _Watched(Actor("", role), url))
        watcher.sent_at = self._monotonic()  # the browser has just got the page
        watched.watchers[watcher] = name
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._keep_reading())
        try:
            yield
        finally:
            watched.watchers.pop(watcher, None)
            if not watched.watchers:
                self._watched.pop((role, url), None)

    async def _keep_reading(self) -> None:
        """Read as long as anybody watches."""
        while self._watched:
            watched = min(self._watched.values(), key=lambda each: each.read_at)
            early = watched.read_at + LEAST_SECONDS_BETWEEN - self._monotonic()
            if early > 0:
                await self._sleep(min(early, LEAST_SECONDS_BETWEEN / 4))  # another may be opened meanwhile
                continue
            began = self._monotonic()
            statements = await self._refresh(watched)
            took = self._monotonic() - began
            await self._sleep(max(statements / STATEMENTS_PER_SECOND, took))

    async def _refresh(self, watched: _Watched) -> int:
        """Read a page and offer it to its watchers. Returns the number of statements; a read that failed counts as a few."""
        statements = 8
        try:
            view = await self._read(watched.actor, watched.url)
            statements = view.statements
        except PageError as error:
            view = _banner(error.title, error.detail)
        except Exception as bug:  # noqa: BLE001  # one page that has a bug must not end the refresh of others
            _log.error("bug in the refresh of a page", exc_info=without_message(bug), extra=fields("bug"))
            view = _banner("This page can't be refreshed", "this is a bug of the page; its log has the place")
        watched.read_at = self._monotonic()
        for watcher in watched.watchers:
            watcher.offer(view, self._clock.now(), watched.read_at)
        return statements


def _banner(title: str, detail: str) -> ShownPage:
    html = Markup('<p class="banner" role="alert"><strong>{}.</strong> {}</p>').format(title, detail)
    return ShownPage(str(html), hashlib.sha256(f"{title} {detail}".encode()).hexdigest()[:16])


class LiveResource:
    """`/live?url=…`: a stream of Server-Sent Events.

    Event `main` has the inside of `<main>`, `at` the time of the last read. After `end` the browser does not come back.
    """

    def __init__(self, hub: Hub, access: Access) -> None:
        self._hub, self._access = hub, access

    async def on_get(self, req: Request, resp: Response) -> None:
        """Begin a stream."""
        url = req.get_param("url", default="")
        version = req.get_header("Last-Event-ID") or req.get_param("version", default="")
        if not url.startswith("/") or url.startswith("//") or len(url) > LONGEST_URL:
            raise BadFilter("url must be the path of a page", field="url")
        self._hub.require_room(req.context.actor.name)
        watcher = Watcher(version)
        req.scope[ON_STOP] = watcher.stop
        resp.set_header("X-Accel-Buffering", "no")  # nginx would keep the events back
        resp.sse = self._events(req, url, watcher)

    async def _events(self, req: Request, url: str, watcher: Watcher) -> AsyncIterator[SSEvent | None]:
        """Yield events until the person may no longer look, or the worker stops."""
        actor = req.context.actor
        try:
            self._hub.require_room(actor.name)  # again: others may have begun since the answer did
        except TooManyWatchers as error:
            yield event_of("end", error.detail)
            return
        with self._hub.watching(actor.role, url, watcher, actor.name):
            yield SSEvent(retry=RETRY_MS)
            checked_at = silent_since = time.monotonic()
            while not watcher.is_stopped:
                events = await watcher.wait(CHECKED_EVERY_SECONDS)
                now = time.monotonic()
                if now - checked_at >= CHECKED_EVERY_SECONDS:
                    checked_at = now
                    if not await self._may_still(req):
                        yield event_of("end", "You have been signed out.")
                        return
                if not events and now - silent_since >= HEARTBEAT_SECONDS:
                    events = [SSEvent(comment="still there")]  # it also finds out that the browser has gone
                for event in events:
                    silent_since = now
                    yield event

    async def _may_still(self, req: Request) -> bool:
        """Ask again who asks: a session may have ended, and a role may be another."""
        role = req.context.actor.role
        try:
            await self._access.process_request(req, Response())
        except PageError:
            return False
        return bool(req.context.actor.role == role)


_LINE_END = re.compile(r"\r\n|\r|\n")


def event_of(name: str, text: str, version: str | None = None) -> SSEvent:
    """Make an event whose text may have several lines. A browser that comes back says the last version that it got."""
    return SSEvent(event=name, event_id=version, text="\ndata: ".join(_LINE_END.split(text)))
