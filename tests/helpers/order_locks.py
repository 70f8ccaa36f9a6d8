"""Locks of routes, as another relay has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

from relay.store.transaction import Transaction
from tests.helpers.relaying import Steps
from tests.helpers.waiting import stand_still


@contextlib.contextmanager
def locking(steps: Steps, routes: list[str] | None) -> Iterator[Transaction]:
    """A transaction that has the lock of these routes, or of everything, and stands still."""
    with steps.database.write() as transaction:
        transaction.take_order_lock(routes)
        stand_still(transaction.connection)
        yield transaction


def lock(steps: Steps, routes: list[str] | None) -> None:
    with steps.database.write() as another:
        another.limit_waits(50)
        another.take_order_lock(routes)


def is_kept_waiting(steps: Steps, routes: list[str] | None) -> bool:
    try:
        lock(steps, routes)
    except DBAPIError as error:
        return "lock timeout" in str(error)
    return False
