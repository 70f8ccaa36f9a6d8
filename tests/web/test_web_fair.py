"""Slow kinds of pages take no thread from the others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.errors import QueryTooSlow
from relay.web import reading as reading_module
from relay.web.reading import Readers, Reading
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.outage import connect_postgres
from tests.helpers.page import OPERATOR, Page, serving
from tests.helpers.page_rows import fill_page
from tests.helpers.relaying import FakeClock, Steps
from tests.helpers.waiting import until

MANY = 20


def test_many_slow_reads_of_a_screen_leave_threads_to_the_others(page_config: Config, clock: FakeClock) -> None:
    go_on = threading.Event()

    def slow(_reading: Reading) -> None:
        assert go_on.wait(30)

    async def both() -> str:
        slow_ones = [asyncio.create_task(readers.read(OPERATOR, slow, kind="deliveries")) for _ in range(MANY)]
        other = await asyncio.wait_for(readers.read(OPERATOR, lambda _: "quick", kind="overview"), 20)
        go_on.set()
        await asyncio.gather(*slow_ones)
        return other

    with contextlib.closing(Readers(page_config, clock)) as readers:
        assert asyncio.run(both()) == "quick"


def test_a_read_that_waits_too_long_for_others_of_its_kind_is_told(
    page_config: Config, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "LONGEST_WAIT_SECONDS", 0.05)
    go_on = threading.Event()

    async def three() -> None:
        slow_ones = [
            asyncio.create_task(readers.read(OPERATOR, lambda _: go_on.wait(30), kind="dead")) for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueryTooSlow, match="waited"):
            await readers.read(OPERATOR, lambda _: None, kind="dead")
        go_on.set()
        await asyncio.gather(*slow_ones)
        await readers.read(OPERATOR, lambda _: None, kind="dead")

    with contextlib.closing(Readers(page_config, clock)) as readers:
        asyncio.run(three())


@ON_POSTGRES
def test_screens_of_a_locked_table_take_no_other_screen_along(
    page_config: Config, clock: FakeClock, steps: Steps, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.PINNED, "lock_timeout", "60s")  # those of reads end by the lock alone
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(reading_module, "LONGEST_SECONDS", 120.0)
    monkeypatch.setattr(reading_module, "LONGEST_WAIT_SECONDS", 1.0)
    fill_page(steps)

    with (
        serving(page_config, clock) as page,
        contextlib.closing(connect_postgres(database_url)) as other,
        contextlib.closing(connect_postgres(database_url)) as observer,
        ThreadPoolExecutor(8) as threads,
    ):
        with other.transaction():
            other.execute("LOCK TABLE delivery_log IN ACCESS EXCLUSIVE MODE")
            slow_ones = [
                threads.submit(_alone, page.url, path)
                for path in ("/dead", "/deliveries")
                for _ in range(reading_module.OF_A_KIND)
            ]
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            until(lambda: observer.execute(waits).fetchone() == (len(slow_ones),), "all of them wait for the lock")
            for path in ("/rejected", "/commands", "/alerts"):
                assert page.get(path).status_code == 200
            told = page.get("/dead?since=2d")
            assert (told.status_code, "The query took too long" in told.text) == (503, True)
            assert 'value="2d"' in told.text
            assert not any(each.done() for each in slow_ones)
        assert [each.result(60) for each in slow_ones] == [200] * len(slow_ones)
        assert page.get("/dead").status_code == 200


def _alone(url: str, path: str) -> int:
    with contextlib.closing(Page(url)) as page:
        return page.get(path, timeout=60).status_code
