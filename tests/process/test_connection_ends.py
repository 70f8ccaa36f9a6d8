"""A connection ends behind a number of requests: each is answered, or was not looked at and can be sent again."""

from __future__ import annotations

import random
import re
import resource
import socket
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from inbox.gunicorn_worker import allow_files
from tests.helpers.processes import gunicorn_after, site
from tests.helpers.receiver import CLOSE, Answer, answers, ask, webhook
from tests.helpers.tables import count, rows
from tests.helpers.webhooks import body, config_text

MOST = 3
DRAINS_FOR_LONG = "from inbox.http import protocol; protocol.DRAIN_SECONDS = 60.0"
ENDS_SOON = (
    f"from inbox.http.limits import Capacity; from inbox.receiver import app; app.CAPACITY = Capacity(99, 99, {MOST})"
)
"""A machine that is busy elsewhere for two seconds must not make what a sender is slow to send a reset."""


def sent(entity: str, *more: bytes) -> bytes:
    """A webhook of its own, on a connection that its sender would keep."""
    return webhook(*more, payload=body(entity), without=(CLOSE,))


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, module_database_url: str) -> Iterator[int]:
    """A receiver under gunicorn that ends connections soon."""
    with site(tmp_path_factory.mktemp("ends"), config_text(module_database_url)) as place:
        yield place.receiver(1, gunicorn_after(f"{DRAINS_FOR_LONG}; {ENDS_SOON}"))[1]


@pytest.fixture
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
        yield made


def all_of(connection: socket.socket) -> list[Answer]:
    """Read all answers until the receiver closes; a reset raises."""
    received = b""
    while more := connection.recv(65536):
        received += more
    return answers(received)


def closes(found: list[Answer]) -> list[bool]:
    return [answer.headers.get("connection") == "close" for answer in found]


def test_the_last_answer_says_close_and_the_next_request_goes_over_another_connection(
    port: int, connection: socket.socket, module_engine: Engine
) -> None:
    for number in range(MOST):
        connection.sendall(sent(f"kept{number}"))
        received = b""
        while b'"seq"' not in received:
            received += connection.recv(65536)
        (answer,) = answers(received)
        assert (answer.status, closes([answer])) == (200, [number == MOST - 1])
    # A request that was on its way meanwhile makes the system throw no answer away, as it does behind a closed socket.
    connection.sendall(sent("late"))
    assert [answer.status for answer in answers(ask(port, webhook(payload=body("kept9"))))] == [200]
    connection.sendall(sent("late"))
    assert connection.recv(65536) == b""
    assert count(module_engine, "inbox WHERE entity_id LIKE 'kept%'") == MOST + 1
    assert count(module_engine, "inbox WHERE entity_id = 'late'") == 0


def test_of_requests_that_are_sent_ahead_some_are_answered_and_the_others_are_not_taken_in(
    port: int, module_engine: Engine
) -> None:
    left = list(range(11))
    chance = random.Random(1)
    while left:
        stream = b"".join(sent(f"ahead{number}") for number in left) + b"and more" * 10_000
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while stream:  # in pieces that end anywhere
                cut = chance.choice((1, 7, 300, 5_000, 100_000))
                connection.sendall(stream[:cut])
                stream = stream[cut:]
            found = all_of(connection)
        answered = [answer for answer in found if answer.status == 200]
        assert len(answered) == min(MOST, len(left))
        assert len(left) < MOST or closes(found) == [False] * (MOST - 1) + [True]
        left = left[len(answered) :]
        query = "SELECT entity_id FROM inbox WHERE entity_id LIKE 'ahead%'"
        seen = {int(row["entity_id"].removeprefix("ahead")) for row in rows(module_engine, query)}
        assert seen == set(range(11)) - set(left), "a request without an answer is not stored"


def test_an_upgrade_counts_once_a_refused_request_counts_and_the_last_body_may_come_in_chunks_and_slowly(
    connection: socket.socket,
) -> None:
    payload = body("u2")
    upgrade = sent("u0", b"Connection: Upgrade", b"Upgrade: h2c")
    refused = sent("u1").replace(b"X-Webhook-Token: ", b"X-Webhook-Token: not")
    chunked = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", sent("u2")).removesuffix(payload)
    connection.sendall(upgrade + refused + chunked)
    for byte in payload:
        connection.sendall(b"1\r\n%c\r\n" % byte)
    connection.sendall(b"0\r\n\r\n" + sent("u3") * 20)
    found = all_of(connection)
    assert [answer.status for answer in found] == [200, 401, 200]
    assert closes(found) == [False, False, True]


@pytest.mark.parametrize(
    ("hard", "allowed", "told"), [(5000, 1100, ""), (500, 500, "too few for connections = 1000\n")]
)
def test_as_many_files_may_be_open_as_connections_need_or_it_is_told(
    hard: int, allowed: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most systems let a process open 1,024 files at first."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    allow_files(1000, "connections")
    written = capsys.readouterr().err
    assert (limits, written.endswith(told), bool(written)) == ([(allowed, hard)], True, bool(told))
