"""Work that a receiver still does during its graceful shutdown."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.intake import Rejected
from inbox.receiver.rejections import PER_SECOND
from inbox.receiver.writer import GroupCommit


async def test_refusals_that_wait_for_their_turn_are_kept_when_the_receiver_stops(
    database_url: str, engine: Engine
) -> None:
    asynchronous = engines.connect_async(database_url, application="tests")
    writer = GroupCommit(asynchronous, SystemClock())
    for _ in range(3 * PER_SECOND):
        writer.reject(
            Rejected(
                received_at=datetime(2026, 1, 1, tzinfo=UTC),
                source="trivore",
                status=422,
                cause="invalid_event",
                reason="id is missing",
                field="id",
                remote_address=None,
                body_sha256=hashlib.sha256(b"{}").digest(),
                headers={},
                body=b"{}",
            )
        )
    await writer.close()
    await asynchronous.dispose()

    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM rejected_request")).scalar() == 3 * PER_SECOND
