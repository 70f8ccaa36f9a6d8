"""The search for planted secrets finds them however they are written, and nothing else."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from tests.helpers.echoing import spelled
from tests.helpers.planted_secrets import Planted, all_text


@pytest.mark.parametrize("number", range(11))
def test_every_spelling_of_a_secret_is_found(number: int) -> None:
    secret = Planted()
    told = spelled(secret.odd("token"))[number]
    assert secret.leaks({"a log": f"something {told} something", "another": "nothing"}) == [("a log", "token")]


def test_there_are_no_more_spellings_than_are_tried() -> None:
    assert len(spelled("any")) == 11


def test_secrets_are_told_apart_and_what_is_none_is_not_found() -> None:
    secret = Planted()
    first, second = secret.plain("first"), secret.odd("second")
    assert secret.leaks({"a": first, "b": second, "c": "Qz"}) == [("a", "first"), ("b", "second")]
    assert secret.plain("first") == first


def test_all_that_stands_in_a_database_is_looked_at_bytes_too(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO rejected_request (received_at, source, status, cause, reason, body_sha256, body, headers)"
                " VALUES (:at, 'somebody', 422, 'invalid_event', 'no', :hash, :body, :headers)"
            ),
            {"at": "2026-01-01T00:00:00.000000Z", "hash": b"hash", "body": b"in-bytes", "headers": '{"a": "in-json"}'},
        )
    found = all_text(engine)["rejected_request"]
    assert all(word in found for word in ("somebody", "in-bytes", "in-json", "hash"))
