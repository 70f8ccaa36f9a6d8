"""Refusals without end: few rows, little memory, the same work whoever asks, and counters that tell what was not kept."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from falcon.testing import ASGIConductor
from sqlalchemy import Engine
from tests.helpers.tables import count

from inbox.clock import SystemClock
from inbox.db.intake import Rejected
from inbox.events.event import Event, Receipt
from inbox.loader.load import parse_config
from inbox.receiver.app import create_app
from inbox.receiver.webhook import Services
from inbox.receiver.writer import MAX_BYTES, MAX_REJECTIONS, PER_SECOND, GroupCommit
from tests.helpers.receiver import Receiver, a_link
from tests.helpers.waiting import until_async
from tests.helpers.webhooks import body, config_text


def refusal(sent: bytes = b"{}") -> Rejected:
    digest = hashlib.sha256(sent).digest()
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Rejected(when, "trivore", 422, "invalid_event", "id is missing", "id", "192.0.2.1", digest, {}, sent)


@asynccontextmanager
async def writing(database_url: str) -> AsyncIterator[GroupCommit]:
    writer = GroupCommit(a_link(database_url), SystemClock())
    try:
        yield writer
    finally:
        await writer.close()


async def test_of_10000_refusals_a_few_hundred_are_kept_and_every_other_is_counted(
    database_url: str, engine: Engine
) -> None:
    async with writing(database_url) as writer:
        began = writer._loop.time()
        for _ in range(5_000):
            writer.reject(refusal())
        await until_async(lambda: count(engine, "rejected_request"), "the first are kept")
        for _ in range(5_000):
            writer.reject(refusal())
        took = writer._loop.time() - began

    kept = count(engine, "rejected_request")
    assert kept <= MAX_REJECTIONS + 10 * (took + 1), "ten a second, and what waited at the end"
    assert kept + writer.rejections.unkept == 10_000


async def test_refusals_that_wait_hold_no_more_memory_than_a_batch_may(sqlite_database_url: str) -> None:
    async with writing(sqlite_database_url) as writer:
        large = bytes(1024 * 1024)
        for _ in range(50):
            writer.reject(refusal(large))
        waiting = len(writer.rejections) * len(large)
        assert waiting <= MAX_BYTES
        assert writer.rejections.unkept == 50 - len(writer.rejections)


async def test_one_refusal_that_is_larger_than_that_is_kept_all_the_same(database_url: str, engine: Engine) -> None:
    async with writing(database_url) as writer:
        writer.reject(refusal(bytes(2 * MAX_BYTES)))
        assert writer.rejections.unkept == 0
    assert count(engine, "rejected_request") == 1


async def test_those_that_wait_for_their_turn_are_kept_when_the_receiver_stops(
    database_url: str, engine: Engine
) -> None:
    async with writing(database_url) as writer:
        for _ in range(3 * PER_SECOND):
            writer.reject(refusal())
    assert count(engine, "rejected_request") == 3 * PER_SECOND


class NoDatabase:
    """A writer that nobody may ask to store anything."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        raise AssertionError(f"asked to store {events}")

    async def probe(self) -> None:
        raise AssertionError("asked whether it can store")

    def reject(self, row: Rejected) -> None:
        self.rejected.append(row)

    async def close(self) -> None:
        pass


SIGNING = """
[sources.signing]
preset = "github"
secrets = ["one", "another"]
"""
UNPROVEN = {
    "no such source": ("/webhooks/nobody", {"Authorization": "Bearer wrong"}),
    "a wrong secret": ("/webhooks/trivore", {"X-Webhook-Token": "wrong"}),
    "no secret": ("/webhooks/trivore", {"X-Webhook-Token": ""}),
    "a wrong signature": ("/webhooks/signing", {"X-Hub-Signature-256": "sha256=" + "0" * 64}),
    "no signature": ("/webhooks/signing", {}),
}


async def test_whatever_is_not_proven_costs_the_same_work_and_no_look_into_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work is how often the body is hashed: all else takes less than a microsecond."""
    hashed: list[int] = []

    def counted(work: Any, position: int) -> Any:  # noqa: ANN401  # any function that hashes
        def count_it(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            hashed.append(len(arguments[position]))
            return work(*arguments, **options)

        return count_it

    writer = NoDatabase()
    config = parse_config(config_text("sqlite:///not-there.db") + SIGNING)
    async with ASGIConductor(create_app(config, lambda: Services(writer), SystemClock())) as conductor:
        receiver = Receiver(conductor)
        monkeypatch.setattr(hashlib, "sha256", counted(hashlib.sha256, 0))
        monkeypatch.setattr(hmac, "digest", counted(hmac.digest, 1))
        sent = body(padding="x" * 10_000)
        times = {}
        for name, (path, headers) in UNPROVEN.items():
            hashed.clear()
            assert (await receiver.post(sent, path=path, headers=headers)).status_code == 401
            times[name] = sum(length >= len(sent) for length in hashed)

    assert times == dict.fromkeys(UNPROVEN, 3)  # once for each secret of the source with the most, and to keep the hash
    assert [(row.body, row.headers) for row in writer.rejected] == [(None, None)] * len(UNPROVEN)
