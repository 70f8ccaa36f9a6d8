"""An inbox filled through the real receiver, before a relay starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tests.helpers.receiver import receiving
from tests.helpers.sender import Event
from tests.helpers.webhooks import a_config, body


def fill(database_url: str, events: Iterable[Event]) -> list[int]:
    """Send these events and have each acknowledged; gives their seqs."""

    async def send() -> list[int]:
        async with receiving(a_config(database_url)) as receiver:
            answers = await asyncio.gather(*(receiver.post(body(*event)) for event in events))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json["seq"] for answer in answers]

    return asyncio.run(send())
