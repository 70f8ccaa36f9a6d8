"""Faults planted in the product, which the proofs must find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from inbox.db import order_lock
from inbox.db.dialect import Sql
from relay.store import audit, rebuild, record
from relay.store.deliveries import LeaseKey
from relay.store.statement import Statement
from relay.store.transaction import Read, Transaction

Plant = Callable[[pytest.MonkeyPatch], None]


def _now_without_a_lock(
    transaction: Transaction, _routes: Iterable[str] | None = None, *, keeps_payloads: bool = False
) -> datetime:
    """Replace `Transaction.take_order_lock` without a lock."""
    transaction.keeps_payloads = keeps_payloads
    return transaction.now()


def takes_the_order_lock(statement: str) -> bool:
    return "FROM order_lock" in statement or "FROM route_lock" in statement


def replace(where: object, name: str, instead: object) -> Plant:
    return lambda monkeypatch: monkeypatch.setattr(where, name, instead)


class _Changed(Statement):
    """A statement with some parts replaced."""

    def __init__(self, original: Statement, parts: Sequence[tuple[str, str]]) -> None:
        self._original, self._parts = original, parts

    def compile_for(self, dialect: Sql) -> Any:  # noqa: ANN401  # as the store has it
        written = self._original.compile_for(dialect)
        found = written.text.text
        for part, instead in self._parts:
            assert part in found
            found = found.replace(part, instead)
        return written._replace(text=text(found))


def _without_the_fence(rows: Iterable[Any], claims: Iterable[LeaseKey]) -> dict[LeaseKey, Any]:
    """Replace `select_leased`, ignoring tokens."""
    found = {(row.seq, row.route): row for row in rows if row.state == "in_flight"}
    return {claim: found[claim[:2]] for claim in claims if claim[:2] in found}


def change(module: ModuleType, statement: str, *parts: tuple[str, str]) -> Plant:
    """Plant a store statement with these parts replaced."""
    return replace(module, statement, _Changed(getattr(module, statement), parts))


without_the_order_lock = replace(Transaction, "take_order_lock", _now_without_a_lock)
without_the_fence = replace(record, "select_leased", _without_the_fence)


def the_lock_of_another_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sequencing, which reads once, lock another route; recording takes the right lock."""
    locked_and_read = Transaction.take_order_lock_and_read

    def lock_another(transaction: Transaction, routes: set[str], *reads: Read) -> tuple[datetime, list[list[Any]]]:
        return locked_and_read(transaction, {"another"} if len(reads) == 1 else routes, *reads)

    monkeypatch.setattr(Transaction, "take_order_lock_and_read", lock_another)


def a_lock_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    locking = order_lock.given_routes

    def sharing(sql: Sql) -> TextClause:
        assert "FOR UPDATE" in locking(sql).text
        return text(locking(sql).text.replace("FOR UPDATE", "FOR SHARE"))

    monkeypatch.setattr(order_lock, "given_routes", sharing)


WITHOUT_A_LOOK = ("AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = open_delivery.seq)", "")
"""Text to remove from the statement that deletes rows without an event."""


def look_again_by_the_events_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a former fault.

    Under the lock, `rebuild` examines all current rows, and takes events for missing that it did not read before.
    """
    events, look = audit._EVENTS, audit.examine
    seen = 0

    def look_at_all(
        transaction: Transaction, seqs: Sequence[int], config: Config, *, locked: bool = False
    ) -> tuple[audit.Checked, list[audit.Stored]]:
        nonlocal seen
        if not locked:
            seen = transaction.execute(text("SELECT coalesce(max(seq), 0) AS seq FROM inbox"))[0].seq
            return look(transaction, seqs, config)
        monkeypatch.setattr(audit, "_EVENTS", Statement(f"{events._words} WHERE i.seq <= {seen}"))
        there = transaction.execute(text("SELECT DISTINCT seq FROM open_delivery"))
        found = look(transaction, sorted({*seqs, *(row.seq for row in there)}), config, locked=True)
        monkeypatch.setattr(audit, "_EVENTS", events)
        return found

    for module in (audit, rebuild):
        monkeypatch.setattr(module, "examine", look_at_all)
