"""A receiver on the internet is judged by what it refuses and survives: 114 kinds of request, byte by byte, at the real one."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine

from inbox.gunicorn_worker import allow_files
from tests.helpers.processes import GUNICORN, Program, Site, free_port, gunicorn_after, site
from tests.helpers.receiver import CLOSE, SECRET, Answer, answers, ask, webhook
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, body, config_text, moment
from tests.process import malformed
from tests.process.malformed import Case

PROBLEM = "application/problem+json"


class Door(NamedTuple):
    """A receiver with one worker, which has to live through all of it."""

    program: Program
    port: int
    worker: int


@pytest.fixture(scope="module")
def door(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    config = config_text(module_database_url) + malformed.CONFIG
    with site(tmp_path_factory.mktemp("door"), config) as place:
        program, port = place.receiver(workers=1)
        (worker,) = program.children()
        yield Door(program, port, worker)
        assert "Traceback" not in program.output


def said(found: list[Answer]) -> int | tuple[int, ...]:
    statuses = tuple(answer.status for answer in found)
    return statuses if len(statuses) != 1 else statuses[0]


@pytest.mark.parametrize("case", malformed.TABLE, ids=[f"{case.number}: {case.name}" for case in malformed.TABLE])
def test_each_is_answered_as_the_table_says_and_the_worker_lives(door: Door, case: Case) -> None:
    found = answers(ask(door.port, case.sent, half_close=case.half_close))

    assert said(found) == (case.status[0] if isinstance(case.status, tuple) and len(case.status) == 1 else case.status)
    for answer in found:
        refused = answer.status >= 400
        assert not refused or answer.headers["content-type"] == PROBLEM
        assert answer.status != 405 or "POST" in answer.headers["allow"]
        assert answer.status not in {429, 503} or int(answer.headers["retry-after"]) > 0
    assert said(answers(ask(door.port, webhook()))) == 200
    assert door.program.children() == [door.worker]


def test_a_refused_body_beyond_the_cap_is_answered_before_any_of_it_is_asked_for(door: Door) -> None:
    case = next(case for case in malformed.TABLE if case.number == 65)
    assert b"100 Continue" not in ask(door.port, case.sent)
    assert b"100 Continue" in ask(door.port, webhook(b"Expect: 100-continue"))
    older = webhook(b"Expect: 100-continue", line=b"POST /webhooks/trivore HTTP/1.0")
    assert b"100 Continue" not in ask(door.port, older)


def test_a_token_that_is_posted_to_in_place_of_a_source_is_kept_nowhere(door: Door, module_engine: Engine) -> None:
    sent = webhook(line=b"POST /webhooks/" + TOKEN.encode() + b" HTTP/1.1")

    def sources_after_another() -> set[str]:
        """Send one more; return the stored sources. Of many rejections a second, the receiver doesn't store each."""
        assert said(answers(ask(door.port, sent))) == 401
        return {row["source"] for row in rows(module_engine, "SELECT source FROM rejected_request")}

    until(lambda: f"unknown ({len(TOKEN)} characters)" in sources_after_another(), "the refusal is kept", poll=0.2)
    assert TOKEN not in str(rows(module_engine, "SELECT * FROM rejected_request"))
    assert TOKEN not in door.program.output


# --- A connection ends behind a number of requests: each is answered, or was not looked at and can be sent again


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


# --- The sender's address, as a real receiver sees it: over TCP and a Unix socket, and through proxies that it trusts


SOURCE = f"""
[sources.guarded]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{TOKEN}"] }}
allow_from = ["192.0.2.0/24", "2001:db8::7", "127.0.0.9"]
"""
DUAL = socket.has_dualstack_ipv6()
MAPPED = "::ffff:"
LINE = b"POST /webhooks/guarded HTTP/1.1"
BY = b"X-Forwarded-For: "


class Receiver:
    """A receiver that listens on ports and on a socket; it trusts the proxies that it trusts unasked."""

    def __init__(self, place: Site, folder: Path) -> None:
        self.wide, self.path = free_port(), folder / "s"
        addresses = [f"unix:{self.path}", *([f"[::]:{self.wide}"] if DUAL else [])]
        binds = [word for address in addresses for word in ("--bind", address)]
        self.program, self.port = place.receiver(1, (*GUNICORN, *binds))

    def ask(self, *fields: bytes, of: str | None = "127.0.0.1", without: tuple[bytes, ...] = ()) -> Answer:
        """The answer to a webhook from this address, over the Unix socket (None), or from IPv4 to a port of IPv6."""
        with contextlib.ExitStack() as stack:
            if of is None:
                sender = stack.enter_context(socket.socket(socket.AF_UNIX))
                sender.connect(str(self.path))
            else:
                address = ("127.0.0.1", self.wide if of.startswith(MAPPED) else self.port)
                mine = (of.removeprefix(MAPPED), 0)
                sender = stack.enter_context(socket.create_connection(address, timeout=10, source_address=mine))
            sender.sendall(webhook(*fields, line=LINE, payload=body("a", moment(0)), without=without))
            found = b""
            while more := sender.recv(65536):
                found += more
        (answer,) = answers(found)
        return answer


@pytest.fixture(scope="module")
def receiver(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    folder = tmp_path_factory.mktemp("senders")
    with site(folder, config_text(module_database_url) + SOURCE) as place:
        yield Receiver(place, folder)


class Refusals:
    """Refusals that are kept from now on."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._known = engine, count(engine, "rejected_request")

    def told(self, number: int) -> list[tuple[str, str | None]]:
        """The reasons and addresses of so many, of which no body is kept."""
        until(lambda: count(self._engine, "rejected_request") >= self._known + number, "they are kept")
        found = rows(self._engine, "SELECT * FROM rejected_request ORDER BY id")[self._known :]
        assert {row["body"] for row in found} == {None}
        return [(row["reason"], row["remote_address"]) for row in found]


@pytest.fixture
def refusals(module_engine: Engine) -> Refusals:
    return Refusals(module_engine)


def test_the_refusal_is_that_of_a_wrong_secret_and_the_operator_is_told(receiver: Receiver, refusals: Refusals) -> None:
    elsewhere = receiver.ask(BY + b"203.0.113.9")
    wrong = receiver.ask(BY + b"192.0.2.1", without=(SECRET,))
    assert (elsewhere.status, elsewhere.body) == (401, wrong.body)
    assert {**elsewhere.headers, "date": ""} == {**wrong.headers, "date": ""}
    for claimed in (b"fe80::1%<b>[red]", b"\\[link=x]", b"x" * 5000, b"203.0.113.9\xc2\x9b"):
        assert receiver.ask(BY + claimed).status == 401
    told = refusals.told(6)
    assert told[:2] == [
        ("it comes from 203.0.113.9, which allow_from does not have", "203.0.113.9"),
        ("it shows no secret", "192.0.2.1"),
    ]
    assert [address for _, address in told[2:]] == ["fe80::1", None, None, None], "nothing but an address is kept"


def test_a_connection_that_was_reset_comes_from_nobody(
    receiver: Receiver, refusals: Refusals, module_engine: Engine
) -> None:
    """Its request is read although it has no address any more; Falcon takes 127.0.0.1 for that, a proxy's."""
    (worker,) = receiver.program.children()
    known = count(module_engine, "inbox")
    os.kill(worker, signal.SIGSTOP)
    try:
        address = ("127.0.0.1", receiver.port)
        with socket.create_connection(address, timeout=10, source_address=("127.0.0.8", 0)) as sender:
            sender.sendall(webhook(BY + b"192.0.2.1", line=LINE, payload=body("reset", moment(1))))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        os.kill(worker, signal.SIGCONT)
    assert receiver.ask(BY + b"203.0.113.9").status == 401
    assert {address for _, address in refusals.told(1)} <= {None, "203.0.113.9"}
    assert count(module_engine, "inbox") == known


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        *(
            ((BY + own,), 200)
            for own in (b"192.0.2.1", b"::ffff:192.0.2.1", b"2001:db8::7", b"[2001:db8::7]:443", b"192.0.2.1:4711")
        ),
        ((BY + b"203.0.113.9, 192.0.2.1",), 200),  # the last is what the proxy has seen
        ((BY + b"203.0.113.9", BY + b"192.0.2.1"), 200),
        ((BY + b"192.0.2.1, 127.0.0.1",), 200),  # two proxies of ours
        ((BY + b"192.0.2.1, 203.0.113.9",), 401),  # the first is what the sender has claimed
        ((BY + b"192.0.2.1", BY + b"203.0.113.9"), 401),
        ((BY + b"192.0.2.1, 203.0.113.9, 127.0.0.1",), 401),
        *(
            ((BY + no,), 401)
            for no in (b"192.0.2.1,", b"2001:db8::8", b"unknown", b"192.0.2.1 ; 203.0.113.9", b"\xff", b"")
        ),
        ((b"Forwarded: for=192.0.2.1",), 401),
        ((b"X-Real-IP: 192.0.2.1", b"X-Client-IP: 192.0.2.1", b"True-Client-IP: 192.0.2.1"), 401),
        ((), 401),
    ],
)
def test_a_proxy_is_believed_and_of_what_it_says_only_its_own_part(
    receiver: Receiver, fields: tuple[bytes, ...], status: int
) -> None:
    for of in ("127.0.0.1", None, *([f"{MAPPED}127.0.0.1"] if DUAL else [])):
        assert receiver.ask(*fields, of=of).status == status, of


def test_a_sender_that_is_no_proxy_is_believed_nothing(receiver: Receiver) -> None:
    for before in ("", *([MAPPED] if DUAL else [])):
        for fields in ((BY + b"192.0.2.1",), (BY + b"127.0.0.9",), (b"Forwarded: for=192.0.2.1",)):
            assert receiver.ask(*fields, of=f"{before}127.0.0.8").status == 401
        assert receiver.ask(BY + b"203.0.113.9", of=f"{before}127.0.0.9").status == 200


def test_it_does_not_start_when_everybody_may_claim_any_address(sqlite_place: Site, sqlite_database_url: str) -> None:
    sqlite_place.configure(config_text(sqlite_database_url) + SOURCE)
    for proxies in ("*", "127.0.0.1,::/0"):
        program = sqlite_place.refused_receiver(FORWARDED_ALLOW_IPS=proxies)
        assert program.ends() != 0
        assert "[sources.guarded] allow_from: FORWARDED_ALLOW_IPS lets every sender claim any address" in program.output
