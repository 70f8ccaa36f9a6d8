"""Errors of the database, as a person and a log are shown them: one readable line that says why."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from inbox.db import engine as engines
from inbox.db.dialect import trouble_text

PASSWORD = "s3cretZq"  # planted


def error_of(url: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised:
        engines.connect(url, application="tests").connect()
    return raised.value


def test_a_server_that_refuses_is_told_in_one_line_with_its_host_and_without_the_password() -> None:
    line = trouble_text(error_of(f"postgresql+psycopg://relay:{PASSWORD}@127.0.0.1:9/inbox"))
    assert line == 'connection failed: connection to server at "127.0.0.1", port 9 failed: Connection refused'


@pytest.mark.parametrize(
    "error",
    [
        ProgrammingError(
            "INSERT …", {}, psycopg.errors.UndefinedTable('relation "x" does not exist\nLINE 1: s3cretZq')
        ),
        OperationalError("INSERT …", {}, sqlite3.OperationalError("no such table: x\ns3cretZq")),
        ValueError(PASSWORD),
    ],
)
def test_no_value_of_a_row_is_told(error: Exception) -> None:
    line = trouble_text(error)
    assert line
    assert PASSWORD not in line
    assert "\n" not in line
