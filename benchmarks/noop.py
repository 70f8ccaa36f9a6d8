"""The receiver with a writer that answers at once and stores nothing: the limit of intake without a database."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from inbox.clock import SystemClock
from inbox.db.intake import Rejected
from inbox.events.event import Event, Receipt
from inbox.loader.load import read_config
from inbox.receiver.app import Receiver, create_app
from inbox.receiver.webhook import Services


class AnswersAtOnce:
    """A writer that only counts."""

    def __init__(self) -> None:
        self._seqs = count(1)

    async def append(self, events: Sequence[Event]) -> list[Receipt]:
        return [Receipt(next(self._seqs), duplicate=False) for _ in events]

    async def probe(self) -> None:
        return

    def reject(self, row: Rejected) -> None:
        raise AssertionError(f"the benchmark sends nothing that is refused, but this was: {row.status}")

    async def close(self) -> None:
        return


def get_app() -> Receiver:
    """Return the app for gunicorn."""
    return create_app(read_config(), lambda: Services(AnswersAtOnce()), SystemClock())
