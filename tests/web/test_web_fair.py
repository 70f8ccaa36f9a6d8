"""Slow pages of one kind take no thread from the others."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from inbox.config.model import Config
from inbox.errors import QueryTooSlow
from relay.web import reading as reading_module
from relay.web.reading import Readers
from relay.web.screen import Reading
from tests.helpers.page import OPERATOR
from tests.helpers.relaying import FakeClock

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
    monkeypatch.setattr(reading_module, "_LONGEST_WAIT_SECONDS", 0.05)
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
