"""Transactions under the order lock do no more work when more is open: counts the cases of `benchmarks.order_lock`."""

from __future__ import annotations

import pytest

from benchmarks.order_lock import CASES, World, record_before_many
from relay.store import sequence
from tests.helpers.transactions import Transactions

FEW, MANY = 1500, 3000


def largest(database_url: str, monkeypatch: pytest.MonkeyPatch, case: str, number: int) -> tuple[int, int]:
    """The most rows that one transaction reads, and the most facts that one writes, with so many open."""
    with monkeypatch.context() as patched:
        world, transactions = World(database_url), Transactions(patched)
        world.empty()
        transactions.forget()
        CASES[case](world, number)
        world.engine.dispose()
    return transactions.largest


@pytest.mark.parametrize("case", CASES)
def test_no_transaction_reads_or_writes_more_when_more_is_open(
    database_url: str, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    few = largest(database_url, monkeypatch, case, FEW)
    many = largest(database_url, monkeypatch, case, MANY)
    assert all(of_many <= of_few + 10 for of_few, of_many in zip(few, many, strict=True)), (few, many)


def test_one_that_folds_all_at_once_is_noticed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "MOST_FOLDED", 1_000_000)
    name = next(name for name, case in CASES.items() if case is record_before_many)
    few, many = (largest(database_url, monkeypatch, name, number) for number in (FEW, MANY))
    assert many[0] > few[0] + 10
    assert many[1] > few[1] + 10
