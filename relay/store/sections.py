"""Sections of an overview that fail alone: a table that a DBA has locked takes no more of it than what is read of that table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import failure_of, trouble_text
from relay.store.transaction import Transaction

MOST_UNREAD = 4
"""Of more sections the whole fails: each may have waited for a lock."""
Made = TypeVar("Made")


class Sections:
    """Reads the sections of one overview. Together they cost a few statements; apart, each has a savepoint of its own."""

    def __init__(self, *, are_apart: bool = False) -> None:
        self._are_apart = are_apart
        self.unread: dict[str, str] = {}
        """Sections that can't be read now, and why."""

    def __call__(
        self, section: str, make: Callable[[], Made], otherwise: Made, transaction: Transaction | None = None
    ) -> Made:
        """Return what `make` returns, or `otherwise` where the database does not answer it and sections are apart."""
        if not self._are_apart:
            return make()
        try:
            with nullcontext() if transaction is None else transaction.connection.begin_nested():
                return make()
        except DBAPIError as error:
            if failure_of(error) == "unreachable" or len(self.unread) >= MOST_UNREAD:
                raise
            self.unread[section] = trouble_text(error)
            return otherwise


def together_or_apart(read: Callable[[Sections], Made]) -> Made:
    """Read an overview at once, and only if a statement fails section by section."""
    try:
        return read(Sections())
    except DBAPIError as error:
        if failure_of(error) == "unreachable":
            raise
    return read(Sections(are_apart=True))
