"""The size of transactions: rows read and facts written, which no test has to time."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import TextClause

from relay.store.transaction import Transaction


class Transactions:
    """Rows that each transaction has read, and facts that each has written, from when it began to look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.facts: list[int] = []
        execute, begin, send = Transaction.execute, Transaction.__init__, Transaction.send_writes

        def begun(transaction: Transaction, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # passed through
            self.rows.append(0)
            begin(transaction, *arguments, **named)

        def executed(transaction: Transaction, statement: TextClause, **parameters: object) -> list[Any]:
            rows = execute(transaction, statement, **parameters)
            self.rows[-1] += len(rows)
            return rows

        monkeypatch.setattr(Transaction, "__init__", begun)

        def sent(transaction: Transaction) -> None:
            self.facts.append(transaction.appended.total())
            send(transaction)

        monkeypatch.setattr(Transaction, "execute", executed)
        monkeypatch.setattr(Transaction, "send_writes", sent)

    def forget(self) -> None:
        """Begin to look again."""
        self.rows.clear()
        self.facts.clear()

    @property
    def largest(self) -> tuple[int, int]:
        """The most rows read, and the most facts written."""
        return max(self.rows, default=0), max(self.facts, default=0)
