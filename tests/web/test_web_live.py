"""Live refresh: what has changed arrives, within a budget of statements that no number of open pages can raise."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from html import unescape
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from inbox.db.intake import Rejected
from inbox.errors import DatabaseAway, TooManyWatchers
from relay.web import live
from relay.web.access.accounts import Actor
from relay.web.live import Hub, ShownPage, Watcher, event_of, inside_of_main
from tests.helpers import outage
from tests.helpers import page as page_module
from tests.helpers.page import OPERATOR, VIEWER, Page
from tests.helpers.relaying import FakeClock, Monotonic, Steps
from tests.helpers.sent_statements import counted_statements
from tests.helpers.storing import START
from tests.helpers.waiting import until


class Stream:
    """Events of one open page, as a browser gets them."""

    def __init__(self, answer: requests.Response) -> None:
        self._answer = answer
        self._lines = answer.iter_lines(chunk_size=1)

    def next(self, *names: str) -> tuple[str, str]:
        """The next event with one of these names."""
        name, data = "message", list[str]()
        for raw in self._lines:
            line = raw.decode()
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data.append(line.removeprefix("data: "))
            elif not line:
                if data and (not names or name in names):
                    return name, "\n".join(data)
                name, data = "message", []
        raise AssertionError("the stream has ended")

    def has_ended(self) -> bool:
        return all(False for _ in self._lines)


@contextlib.contextmanager
def open_page(page: Page, path: str, actor: Actor = OPERATOR) -> Iterator[Stream]:
    """A page in a browser of its own."""
    shown = page.get(path, actor).text
    with contextlib.closing(Page(page.url)) as browser:
        answer = browser.get(live_url_of(shown), actor, stream=True)
        assert answer.status_code == 200, answer.text
        with contextlib.closing(answer):
            yield Stream(answer)


def live_url_of(html: str) -> str:
    (found,) = re.findall(r'data-live="([^"]*)"', html)
    return unescape(found)


def reject(steps: Steps, reason: str) -> None:
    steps.intake.reject(Rejected(START, "trivore", 400, "not_json", reason, None, None, b"x" * 32, None, None))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is read again at once, and checks at every opportunity who asks."""
    monkeypatch.setattr(live, "LEAST_SECONDS_BETWEEN", 0.05)
    monkeypatch.setattr(live, "CHECKED_EVERY_SECONDS", 0.05)


@pytest.mark.usefixtures("hasty")
def test_a_changed_row_arrives_and_what_is_the_same_is_not_sent(page: Page, steps: Steps) -> None:
    with open_page(page, "/rejected?source=trivore") as stream:
        assert stream.next()[0] == "at"
        assert stream.next()[0] == "at"
        reject(steps, "no <b>JSON</b>\r\n at all")
        _, html = stream.next("main")
    assert "no &lt;b&gt;JSON&lt;/b&gt;" in html
    assert html.strip() == inside_of_main(page.get("/rejected?source=trivore").text).strip()


@pytest.mark.usefixtures("hasty")
def test_a_database_that_goes_away_is_told_and_the_stream_goes_on(page: Page, database_url: str) -> None:
    with open_page(page, "/rejected") as stream:
        stream.next("at")
        with outage.gone(database_url):
            _, html = stream.next("main")
            assert "The database does not answer" in html
        _, html = stream.next("main")
        assert "The database does not answer" not in html


@pytest.mark.usefixtures("hasty")
def test_a_stream_ends_when_the_person_may_no_longer_look(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_page(page, "/rejected") as stream:
        stream.next("at")
        monkeypatch.setattr(page_module, "_HEADER", "X-Nobody-Sends-This")
        assert stream.next("end") == ("end", "You have been signed out.")
        assert stream.has_ended()


def test_a_page_that_asks_for_no_refresh_has_none(page: Page) -> None:
    for path in ("/rejected?live=0", "/rejected?limit=0"):
        assert "data-live" not in page.get(path).text
    assert page.get("/rejected?live=0").status_code == 200
    assert page.json("/rejected.json?live=0") == page.json("/rejected.json")


@pytest.mark.parametrize("url", ["", "rejected", "//example.com/", "https://example.com/", "/" + "x" * 9000])
def test_only_paths_of_this_page_can_be_watched(page: Page, url: str) -> None:
    assert page.get(f"/live?url={url}").status_code == 400


def test_nobody_watches_without_signing_in(page: Page) -> None:
    assert page.get("/live?url=/rejected", actor=None).status_code == 401


def test_a_page_that_does_not_exist_says_so(page: Page) -> None:
    with contextlib.closing(page.get("/live?url=/nothing", stream=True)) as answer:
        assert "There is no such thing" in Stream(answer).next("main")[1]


def test_twenty_open_pages_cost_the_database_at_most_five_statements_a_second(page: Page) -> None:
    with contextlib.ExitStack() as open_pages:
        paths = [f"/rejected?source=s{n % 10}" for n in range(20)]
        actors = [OPERATOR if n < 10 else VIEWER for n in range(20)]
        streams = [open_pages.enter_context(open_page(page, *each)) for each in zip(paths, actors, strict=True)]
        with counted_statements() as seen:
            began = time.monotonic()
            for stream in streams:
                stream.next("at")
            until(lambda: time.monotonic() - began > 3, "three seconds have passed")
            seconds = time.monotonic() - began
            assert 1 <= len(seen) <= 5 * seconds, seen


# --- the hub alone, with a clock that moves when it sleeps


class Database:
    """Pages of which each read takes so many statements and seconds."""

    def __init__(self, time: Monotonic, statements: int, seconds: float) -> None:
        self._time, self._cost, self._seconds = time, statements, seconds
        self.statements = 0
        self.reads: list[tuple[str, str]] = []
        self.content: dict[str, str] = {}

    async def read(self, actor: Actor, url: str) -> ShownPage:
        self.reads.append((actor.role, url))
        self.statements += self._cost
        self._time.seconds += self._seconds
        content = self.content.get(url, "")
        if content == "away":
            raise DatabaseAway("<b>gone</b>")
        if content == "bug":
            raise ZeroDivisionError
        return ShownPage(content, content, self._cost)


class Bench:
    """A hub on such a database."""

    def __init__(self, statements: int = 2, seconds: float = 0.0) -> None:
        self.time = Monotonic(1000.0)
        self.database = Database(self.time, statements, seconds)
        self.hub = Hub(self.database.read, FakeClock(), monotonic=self.time, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.time.seconds += seconds
        await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError

    async def passes(self, seconds: float) -> None:
        end = self.time.seconds + seconds
        await self.until(lambda: self.time.seconds >= end)


def on_bench(run: Callable[[Bench], Awaitable[Any]], **options: Any) -> Bench:  # noqa: ANN401
    bench = Bench(**options)

    async def go() -> None:
        await run(bench)

    asyncio.run(go())
    return bench


@given(statements=st.integers(0, 40), pages=st.integers(1, 30), seconds=st.floats(0, 3))
def test_the_reader_keeps_to_its_budget_whatever_is_open(statements: int, pages: int, seconds: float) -> None:
    async def watch(bench: Bench) -> None:
        with contextlib.ExitStack() as stack:
            for n in range(pages):
                stack.enter_context(bench.hub.watching("viewer", f"/{n}", Watcher("")))
            began = bench.time.seconds
            await bench.passes(120)
            passed = bench.time.seconds - began
            assert bench.database.statements <= live.STATEMENTS_PER_SECOND * passed + statements
            assert len(bench.database.reads) * seconds <= passed / 2 + 2 * seconds
            counts = [bench.database.reads.count(("viewer", f"/{n}")) for n in range(pages)]
            assert max(counts) - min(counts) <= 1

    on_bench(watch, statements=statements, seconds=seconds)


def test_pages_that_show_the_same_to_the_same_role_share_a_read() -> None:
    async def watch(bench: Bench) -> None:
        watchers = [Watcher("") for _ in range(50)]
        bench.database.content["/"] = "new"
        with contextlib.ExitStack() as stack:
            for watcher in watchers:
                stack.enter_context(bench.hub.watching("operator", "/", watcher))
            sent = [await watcher.wait(10) for watcher in watchers]
            assert bench.database.reads == [("operator", "/")]
        assert {events[0].event for events in sent} == {"main"}
        assert len({id(watcher) for watcher in watchers}) == 50

    on_bench(watch)


def test_a_viewer_never_gets_what_was_read_for_an_operator() -> None:
    async def watch(bench: Bench) -> None:
        with (
            bench.hub.watching("operator", "/", Watcher("")),
            bench.hub.watching("viewer", "/", Watcher("")),
        ):
            await bench.until(lambda: len(bench.database.reads) >= 2)
        assert set(bench.database.reads[:2]) == {("operator", "/"), ("viewer", "/")}

    on_bench(watch)


def test_a_browser_that_reads_nothing_holds_only_the_latest_page() -> None:
    async def watch(bench: Bench) -> None:
        slow = Watcher("")
        with bench.hub.watching("operator", "/", slow):
            for n in range(200):
                bench.database.content["/"] = f"page {n}"
                await bench.until(lambda n=n: slow.version == f"page {n}")  # type: ignore[misc]
            events = await slow.wait(1)
        assert (events[0].event, events[0].text) == ("main", "page 199")
        assert len(events) == 2

    on_bench(watch)


def test_one_page_with_a_bug_does_not_stop_the_others() -> None:
    async def watch(bench: Bench) -> None:
        bench.database.content = {"/a": "bug", "/b": "away", "/c": "fine"}
        watchers = {path: Watcher("") for path in ["/a", "/b", "/c"]}
        with contextlib.ExitStack() as stack:
            for path, watcher in watchers.items():
                stack.enter_context(bench.hub.watching("operator", path, watcher))
            texts = {path: (await watcher.wait(10))[0].text or "" for path, watcher in watchers.items()}
            await bench.until(lambda: len(bench.database.reads) > 6)
        assert "this is a bug" in texts["/a"]
        assert "&lt;b&gt;gone" in texts["/b"]
        assert texts["/c"] == "fine"

    on_bench(watch)


def test_times_are_refreshed_though_the_data_stays() -> None:
    async def watch(bench: Bench) -> None:
        bench.database.content["/"] = "same"
        watcher = Watcher("same")
        with bench.hub.watching("operator", "/", watcher):
            began = bench.time.seconds
            while (await watcher.wait(10))[0].event != "main":
                pass
            assert live.SENT_AGAIN_SECONDS <= bench.time.seconds - began <= live.SENT_AGAIN_SECONDS + 10

    on_bench(watch)


def test_there_is_a_limit_of_open_pages_and_a_closed_one_makes_room() -> None:
    async def watch(bench: Bench) -> None:
        with contextlib.ExitStack() as stack:
            for n in range(live.MOST_WATCHERS):
                stack.enter_context(bench.hub.watching("operator", f"/{n}", Watcher(""), f"person {n}"))
            with pytest.raises(TooManyWatchers):
                bench.hub.require_room("anna")
        bench.hub.require_room("anna")
        assert bench.hub.watchers == 0
        reads = len(bench.database.reads)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(bench.database.reads) <= reads + 1

    on_bench(watch)


@pytest.mark.usefixtures("hasty")
def test_one_person_with_many_pages_leaves_room_for_others_and_keeps_no_refused_connection(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_OF_A_PERSON", 2)
    with contextlib.ExitStack() as open_pages:
        streams = [open_pages.enter_context(open_page(page, "/rejected")) for _ in range(2)]  # one let go would end
        for stream in streams:
            stream.next("at")
        refused = page.get("/live?url=/rejected")
        assert (refused.status_code, refused.headers["Connection"]) == (503, "close")
        assert "2 of your pages" in refused.text
        open_pages.enter_context(open_page(page, "/rejected", VIEWER)).next("at")
    assert page.get("/live?url=/rejected", actor=None).headers["Connection"] == "close"


@given(st.text())
def test_a_browser_puts_the_lines_of_an_event_together_again(text: str) -> None:
    written = event_of("main", text).serialize().decode("utf-8", "surrogatepass")
    lines = re.split("\r\n|\r|\n", written)
    data = "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    assert data == re.sub("\r\n|\r", "\n", text)
    assert all(line.startswith(("data: ", "event: ")) or not line for line in lines)
