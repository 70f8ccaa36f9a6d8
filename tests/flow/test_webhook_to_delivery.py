"""A webhook becomes a delivery: the real app and writer, then the real steps of the relay, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import datetime

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.events.event import RawRequest
from inbox.http import protocol
from inbox.loader.load import parse_config
from inbox.receiver import app
from inbox.sources.credentials import Verifier
from tests.helpers.databases import ON_BOTH
from tests.helpers.receiver import (
    CLOSE,
    HOST,
    PROBLEM,
    Receiver,
    answers,
    ask,
    receiving,
    request,
    serve_receiver,
    webhook,
)
from tests.helpers.relaying import Steps
from tests.helpers.tables import count, duplicates, rows
from tests.helpers.waiting import until, until_async
from tests.helpers.webhooks import HEADERS, PATH, ROUTE, TOKEN, body, config_text, moment


@ON_BOTH
async def test_a_webhook_becomes_a_delivery(receiver: Receiver, steps: Steps, engine: Engine) -> None:
    payload = body("u1", "2026-01-01T02:00:00+02:00", other="fields are kept")
    answer = await receiver.post(payload, headers={"X-Request-Id": "r-1"})

    assert (answer.status_code, answer.json) == (200, {"status": "accepted", "seq": 1})
    assert rows(engine, "SELECT seq, route, lane, state FROM open_delivery") == [
        {"seq": 1, "route": ROUTE, "lane": "USER|u1", "state": "received"}
    ]

    assert steps.round() == 1
    (delivery,) = steps.deliverer.seen
    assert delivery.body == payload
    assert (delivery.seq, delivery.route, delivery.attempt) == (1, ROUTE, 1)
    assert (delivery.entity_type, delivery.entity_id, delivery.event_type) == ("USER", "u1", "UPDATE")
    assert delivery.occurred_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert delivery.headers["x-request-id"] == "r-1"
    assert TOKEN not in str(delivery.headers)
    assert steps.kinds() == [(1, "delivered")]
    assert count(engine, "open_delivery") == 0


@ON_BOTH
@pytest.mark.parametrize(
    "again",
    [body(), body("u1", "2026-01-01T01:00:00+01:00"), body(comment="new")],
    ids=["byte for byte", "the same instant in other words", "another field"],
)
async def test_a_duplicate_gets_the_first_seq_and_is_noted(receiver: Receiver, engine: Engine, again: bytes) -> None:
    first = await receiver.post()
    await receiver.post(body("u2"))
    repeat = await receiver.post(again)

    assert (repeat.status_code, repeat.json) == (200, {"status": "duplicate", "seq": first.json["seq"]})
    assert count(engine, "inbox") == 2
    assert count(engine, "open_delivery") == 2
    (verify_noted,) = rows(engine, "SELECT seq, body, handled_at FROM duplicate_request")
    kept = None if again == body() else again
    assert verify_noted == {"seq": first.json["seq"], "body": kept, "handled_at": None}


@ON_BOTH
async def test_fifty_identical_requests_at_once_are_one_event(receiver: Receiver, steps: Steps, engine: Engine) -> None:
    answers = await asyncio.gather(*(receiver.post() for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json["seq"] for answer in answers}) == 1
    statuses = [answer.json["status"] for answer in answers]
    assert (statuses.count("accepted"), statuses.count("duplicate")) == (1, 49)
    assert count(engine, "inbox") == 1
    assert duplicates(engine) == 49
    assert count(engine, "duplicate_request WHERE body IS NOT NULL") == 0
    steps.until_nothing_is_due()
    assert len(steps.deliverer.seen) == 1


# --- Senders that are slow, silent, or too many: each is told in time, and costs the others nothing


LIVE = request(HOST, line=b"GET /health/live HTTP/1.1")


@contextlib.contextmanager
def connect(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as made:
        yield made


def ask_live(sender: socket.socket) -> None:
    """A whole request and its whole answer; the connection stays."""
    sender.sendall(LIVE)
    received = b""
    while not received.endswith(b"}"):
        more = sender.recv(65536)
        assert more, received
        received += more
    assert received.startswith(b"HTTP/1.1 200")


def rest_of(sender: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while more := sender.recv(65536):
            received += more
    return received


def drip_bytes(sender: socket.socket, sent: bytes) -> bytes:
    """Send a byte whenever 20 ms have passed without an answer, until there is one; gives all that comes."""
    drops = iter(sent)
    sender.settimeout(0.02)
    received = b""
    while not received:
        with contextlib.suppress(TimeoutError):
            received = sender.recv(65536)
            if not received:
                return b""
            continue
        with contextlib.suppress(ConnectionError):
            sender.sendall(bytes([next(drops)]))
    sender.settimeout(10)
    return received + rest_of(sender)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_WITHIN_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "TAKEN_WITHIN_SECONDS", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_head_that_drips_is_408_and_a_connection_that_says_nothing_is_closed(sqlite_database_url: str) -> None:
    with serve_receiver(sqlite_database_url) as port, connect(port) as silent:

        def drip() -> bytes:
            with connect(port) as dripping:
                return drip_bytes(dripping, webhook() * 3)

        (answer,) = answers(until(drip, "its first drop was in time"))
        assert (answer.status, answer.headers["content-type"]) == (408, PROBLEM)
        assert rest_of(silent) == b""


@pytest.mark.usefixtures("impatient")
def test_a_sender_that_does_not_take_its_answers_is_cut_off(sqlite_database_url: str) -> None:
    with serve_receiver(sqlite_database_url, send_buffer=4096) as port, socket.socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender.settimeout(10)
        sender.connect(("127.0.0.1", port))

        def is_cut_off() -> bool:
            try:
                sender.sendall(LIVE * 8)
            except ConnectionError:
                return True
            return False

        until(is_cut_off, "it is cut off", poll=0.05)
        live = request(HOST, CLOSE, line=b"GET /health/live HTTP/1.1")
        until(lambda: [answer.status for answer in answers(ask(port, live))] == [200], "another is answered")


def test_an_answer_before_the_body_has_come_arrives_and_ends_the_connection(sqlite_database_url: str) -> None:
    with serve_receiver(sqlite_database_url) as port:
        for sent, status in (
            (webhook(line=b"PUT /webhooks/trivore HTTP/1.1", payload=bytes(10**7)), 405),
            (webhook(line=b"POST /nowhere HTTP/1.1", payload=bytes(10**7)), 404),
            (webhook(payload=bytes(10**7)), 413),
            (webhook(b"Host: another", payload=bytes(10**7)), 400),
        ):
            with connect(port) as sender:
                sender.sendall(sent.replace(CLOSE + b"\r\n", b""))  # raises when it is reset
                (answer,) = answers(rest_of(sender))
            assert answer.status == status
            assert answer.headers["connection"] == "close"


def limit(monkeypatch: pytest.MonkeyPatch, *, memory: int = app.MEMORY, **limits: int) -> None:
    monkeypatch.setattr(app, "MEMORY", memory)
    monkeypatch.setattr(app, "CAPACITY", msgspec.structs.replace(app.CAPACITY, **limits))


def test_a_connection_too_many_is_503_until_another_ends(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, connections=2)
    with serve_receiver(sqlite_database_url) as port:
        with connect(port) as one, connect(port) as other:
            for sender in (one, other):
                ask_live(sender)
            with connect(port) as third:
                (answer,) = answers(rest_of(third))
            assert (answer.status, answer.headers["content-type"]) == (503, PROBLEM)
            assert int(answer.headers["retry-after"]) > 0
        until(lambda: [a.status for a in answers(ask(port, webhook()))] == [200], "there is room again")


def test_a_request_too_many_is_503_but_health_works(sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, requests=1)
    with serve_receiver(sqlite_database_url) as port, connect(port) as first:
        first.sendall(webhook()[:-1])
        until(lambda: [a.status for a in answers(ask(port, webhook()))] == [503], "the first is under way")
        (answer,) = answers(ask(port, webhook()))
        assert (answer.status, answer.headers["content-type"]) == (503, PROBLEM)
        assert int(answer.headers["retry-after"]) > 0
        assert [a.status for a in answers(ask(port, LIVE.replace(HOST, HOST + b"\r\n" + CLOSE)))] == [200]

        first.sendall(webhook()[-1:])
        assert [a.status for a in answers(rest_of(first))] == [200]
        assert [a.status for a in answers(ask(port, webhook()))] == [200]


def test_too_many_bytes_of_bodies_are_503_until_others_end(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = webhook(payload=body(more="x" * 200_000))
    endless = b"Transfer-Encoding: chunked"
    limit(monkeypatch, memory=800_000)
    with serve_receiver(sqlite_database_url) as port, connect(port) as first:
        assert [a.status for a in answers(ask(port, large))] == [200]
        first.sendall(large[:-1])
        until(lambda: [a.status for a in answers(ask(port, large))] == [503], "the first is under way")
        assert [a.status for a in answers(ask(port, webhook()))] == [200], "a small one takes nothing of it"
        first.sendall(large[-1:])
        assert [a.status for a in answers(rest_of(first))] == [200]

        for cut in (large[:-1], large.replace(b"\r\nContent", b"\r\n" + endless + b"\r\nContent", 1), large[:150_000]):
            assert {a.status for a in answers(ask(port, cut, half_close=True))} <= {400}
        assert [a.status for a in answers(ask(port, large))] == [200], "what was given up has given its room back"


async def test_a_body_that_is_hashed_often_delays_no_other(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's request is not slowed by the verifiers of all sources."""
    signed = f'[sources.signed]\npreset = "github"\nsecrets = {[f"secret {number}" for number in range(40)]}\n'
    done_in: list[threading.Thread] = []
    verify = Verifier.verify

    def verify_noted(self: Verifier, raw: RawRequest, now: datetime) -> None:
        done_in.append(threading.current_thread())
        verify(self, raw, now)

    monkeypatch.setattr(Verifier, "verify", verify_noted)
    async with receiving(parse_config(config_text(sqlite_database_url) + signed)) as receiver:
        here = threading.current_thread()
        for path, headers in ((PATH, {}), ("/webhooks/nobody", {}), (PATH, {"X-Webhook-Token": "wrong"})):
            for size in (1000, 60_000):
                assert (await receiver.post(b"x" * size, path=path, headers=headers)).status_code in {400, 401}
        assert [thread is here for thread in done_in] == [True, False] * 3


RATE = """
[sources.slow]
preset = "trivore"
rate = "2/d"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{token}"] }}
"""


async def test_a_source_beyond_its_rate_gets_429_and_strangers_use_nothing_of_it(
    database_url: str, engine: Engine
) -> None:
    async with receiving(parse_config(config_text(database_url) + RATE.format(token=TOKEN))) as receiver:
        assert await statuses(receiver, 5, "wrong") == [401] * 5
        assert await statuses(receiver, 3, TOKEN) == [200, 200, 429]
        answer = await receiver.post(body("late", moment(9)), path="/webhooks/slow")
        assert answer.status_code == 429
        assert answer.headers["content-type"] == PROBLEM
        assert 43_000 < int(answer.headers["retry-after"]) <= 43_200
        assert (await receiver.post()).status_code == 200, "another source's rate is its own"

        await until_async(lambda: count(engine, "rejected_request WHERE status = 429") == 2, "they are kept")
    (kept, _) = rows(engine, "SELECT cause, body FROM rejected_request WHERE status = 429 ORDER BY id")
    assert kept["cause"] == "too_many"
    assert kept["body"], "so that a person can take them up, if the sender does not come again"
    assert count(engine, "inbox WHERE source = 'slow'") == 2


async def statuses(receiver: Receiver, number: int, token: str) -> list[int]:
    """Post `number` webhooks, one after the other; return the statuses of the answers."""
    found = []
    for n in range(number):
        answer = await receiver.post(
            body(f"u{n}", moment(n)), path="/webhooks/slow", headers={**HEADERS, "X-Webhook-Token": token}
        )
        found.append(answer.status_code)
    return found
