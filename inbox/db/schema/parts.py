"""The metadata of all tables, and the columns and indexes that they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    Column,
    Index,
    MetaData,
    text,
)
from sqlalchemy.sql import ColumnElement
from sqlalchemy.types import TypeEngine

from inbox.db.columns import BigId

_Type = type[TypeEngine[Any]] | TypeEngine[Any]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

HOT = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_cost_delay": 0}
"""Storage of rows that change often: room on the page for the next version, and early vacuum."""

PRUNED = {"autovacuum_vacuum_scale_factor": 0.02}
"""Storage of rows that retention deletes: VACUUM frees them for new rows at 2 % of the table, not at 20 %."""


def number(name: str, comment: str) -> Column[int]:
    """Make a primary key that counts up by itself."""
    return Column(name, BigId, primary_key=True, autoincrement=True, comment=comment)


def required(name: str, kind: _Type, comment: str, *, default: str | ColumnElement[Any] | None = None) -> Column[Any]:
    """Make a column that is never empty; `default` is an SQL expression."""
    given = text(default) if isinstance(default, str) else default
    return Column(name, kind, nullable=False, server_default=given, comment=comment)


def optional(name: str, kind: _Type, comment: str) -> Column[Any]:
    """Make a column that may be empty; the comment says what that means."""
    return Column(name, kind, comment=comment)


def count(name: str, kind: _Type, comment: str) -> Column[Any]:
    """Make a column that counts from 0."""
    return required(name, kind, comment, default="0")


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Make an index of the rows that fulfil an SQL condition."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def one_of(states: Iterable[str]) -> str:
    """Write the list of an SQL `IN`; the words have no quotes in them."""
    return ", ".join(f"'{state}'" for state in states)
