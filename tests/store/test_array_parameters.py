"""A column of a batch that is bound as the text of an array arrives in Postgres value for value."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import DataError

from inbox.db.dialect import array_param
from inbox.events.timestamps import as_time

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ARRAY_SYNTAX = st.text('{}",\\ \n;NULx', max_size=8)
TIMES = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001  # bounds are naive


def stored(engine: Engine, values: list[Any], kind: str) -> list[Any]:
    with engine.connect() as connection:
        statement = text(f"SELECT v FROM unnest(CAST(:values AS {kind}[])) WITH ORDINALITY AS a(v, n) ORDER BY n")
        return list(connection.scalars(statement, {"values": array_param(values)}))


@given(st.lists(st.none() | TEXTS | ARRAY_SYNTAX | st.sampled_from(["NULL", "null", "", "\\x00", '"', "\\"])))
def test_texts(module_engine: Engine, values: list[str | None]) -> None:
    assert stored(module_engine, values, "text") == values


@given(st.lists(st.none() | st.binary(max_size=40)))
def test_bytes(module_engine: Engine, values: list[bytes | None]) -> None:
    assert [None if v is None else bytes(v) for v in stored(module_engine, values, "bytea")] == values


@given(st.lists(st.none() | st.booleans()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_flags_and_numbers(module_engine: Engine, flags: list[bool | None], numbers: list[int | None]) -> None:
    assert stored(module_engine, flags, "boolean") == flags
    assert stored(module_engine, numbers, "bigint") == numbers


@given(st.lists(st.none() | TIMES))
def test_times_to_the_microsecond(module_engine: Engine, values: list[datetime | None]) -> None:
    assert [None if v is None else as_time(v) for v in stored(module_engine, values, "timestamptz")] == values


def test_a_text_with_nul_is_a_data_error_as_in_any_other_parameter(module_engine: Engine) -> None:
    with pytest.raises(DataError):
        stored(module_engine, ["a\0b"], "text")
