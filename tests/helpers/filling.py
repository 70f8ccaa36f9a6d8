"""An inbox filled through the real receiver, before a relay starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tests.helpers.receiver import Receiver, receiving
from tests.helpers.sender import Event
from tests.helpers.webhooks import a_config, body

_TRIES = 10


def fill(database_url: str, events: Iterable[Event]) -> list[int]:
    """Send these events, as a sender does until each is acknowledged; gives their seqs."""

    async def send() -> list[int]:
        async with receiving(a_config(database_url)) as receiver:
            return list(await asyncio.gather(*(_acknowledged(receiver, body(*event)) for event in events)))

    return asyncio.run(send())


async def _acknowledged(receiver: Receiver, payload: bytes) -> int:
    for _ in range(_TRIES):
        answer = await receiver.post(payload)
        if answer.status_code != 503:  # a busy machine's database may be late
            break
    assert answer.status_code == 200
    seq: int = answer.json["seq"]
    return seq
