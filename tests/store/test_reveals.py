"""Reveals of payloads: one row each, which only an erasure changes."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from relay.store import reads
from relay.store.database import Database
from tests.helpers.relaying import FakeClock
from tests.helpers.storing import START


def test_a_reveal_has_who_saw_it_when_and_why(database: Database, clock: FakeClock) -> None:
    first = reads.record_reveal(database, 7, who="anna", reason="the customer called")
    clock.advance(60)
    second = reads.record_reveal(database, 7, who="b\x00ot", reason="r\ud800")
    reads.record_reveal(database, 8, who="anna", reason="another event")
    assert second == first + 1
    newest, oldest = reads.reveals_of(database, 7)
    assert (oldest["id"], oldest["who"], oldest["reason"]) == (first, "anna", "the customer called")
    assert oldest["at"] == START
    assert newest["at"] > oldest["at"]
    assert "\x00" not in newest["who"]


def test_the_newest_are_shown(database: Database) -> None:
    numbers = [reads.record_reveal(database, 1, who="anna", reason=str(n)) for n in range(reads.MOST_REVEALS + 2)]
    assert [row["id"] for row in reads.reveals_of(database, 1)] == numbers[:1:-1]


@pytest.mark.parametrize(("who", "reason"), [("", "r"), ("  ", "r"), ("anna", ""), ("anna", "  ")])
def test_nobody_and_no_reason_are_no_reveal(database: Database, who: str, reason: str) -> None:
    with pytest.raises(IntegrityError):
        reads.record_reveal(database, 1, who=who, reason=reason)
    assert reads.reveals_of(database, 1) == []
