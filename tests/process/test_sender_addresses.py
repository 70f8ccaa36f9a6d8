"""The sender's address, as a real receiver sees it: over TCP and a Unix socket, and through proxies that it trusts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.helpers.processes import GUNICORN, Site, free_port, site
from tests.helpers.receiver import SECRET, Answer, answers, webhook
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, body, config_text, moment

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
        ("it has no secret", "192.0.2.1"),
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
        program = sqlite_place.start_refused_receiver(FORWARDED_ALLOW_IPS=proxies)
        assert program.ends() != 0
        assert "[sources.guarded] allow_from: FORWARDED_ALLOW_IPS lets every sender claim any address" in program.output
