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

from tests.helpers.processes import GUNICORN, Site, children_of, free_port, is_ready, site
from tests.helpers.receiver import SECRET, Answer, answers, webhook
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import TOKEN, body, config_text, moment

LISTED = ("192.0.2.0/24", "2001:db8::7", "127.0.0.9")
SOURCE = f"""
[sources.guarded]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{TOKEN}"] }}
allow_from = {list(LISTED)}
"""
DUAL = socket.has_dualstack_ipv6()
MAPPED = "::ffff:"
LINE = b"POST /webhooks/guarded HTTP/1.1"


class Receiver:
    """A receiver that listens on a port and on a socket; it trusts the proxies that it trusts unasked."""

    def __init__(self, place: Site, folder: Path) -> None:
        self.port, self.wide, self.path = free_port(), free_port(), folder / "s"
        addresses = [f"127.0.0.1:{self.port}", f"unix:{self.path}", *([f"[::]:{self.wide}"] if DUAL else [])]
        binds = [word for address in addresses for word in ("--bind", address)]
        self.program = place.start("receiver", *GUNICORN, *binds, "--workers", "1")
        until(lambda: is_ready(self.port) or not self.program.runs, "the receiver is ready")
        assert self.program.runs, self.program.output

    def ask(
        self, *fields: bytes, of: str | None = "127.0.0.1", without: tuple[bytes, ...] = (), number: int = 0
    ) -> Answer:
        """The answer to a webhook from this address, over the Unix socket (None), or from IPv4 to a port of IPv6."""
        with contextlib.ExitStack() as stack:
            if of is None:
                sender = stack.enter_context(socket.socket(socket.AF_UNIX))
                sender.connect(str(self.path))
            else:
                address = ("127.0.0.1", self.wide if of.startswith(MAPPED) else self.port)
                mine = (of.removeprefix(MAPPED), 0)
                sender = stack.enter_context(socket.create_connection(address, timeout=10, source_address=mine))
            sender.sendall(webhook(*fields, line=LINE, payload=body("a", moment(number)), without=without))
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


def told(engine: Engine, since: int, number: int) -> list[tuple[str, str | None]]:
    """The reasons and addresses of so many refusals."""
    until(lambda: count(engine, "rejected_request WHERE id > :since", since=since) >= number, "they are kept")
    found = rows(engine, "SELECT * FROM rejected_request WHERE id > :since ORDER BY id", since=since)
    assert {row["body"] for row in found} == {None}
    return [(row["reason"], row["remote_address"]) for row in found]


def last_refusal(engine: Engine) -> int:
    return int(rows(engine, "SELECT coalesce(max(id), 0) AS id FROM rejected_request")[0]["id"])


def test_the_refusal_is_that_of_a_wrong_secret_and_the_operator_is_told(
    receiver: Receiver, module_engine: Engine
) -> None:
    since = last_refusal(module_engine)
    elsewhere = receiver.ask(b"X-Forwarded-For: 203.0.113.9")
    wrong = receiver.ask(b"X-Forwarded-For: 192.0.2.1", without=(SECRET,))
    assert elsewhere.status == 401
    assert elsewhere.body == wrong.body
    assert {**elsewhere.headers, "date": ""} == {**wrong.headers, "date": ""}
    assert told(module_engine, since, 2) == [
        ("it comes from 203.0.113.9, which allow_from does not have", "203.0.113.9"),
        ("it shows no secret", "192.0.2.1"),
    ]


def test_of_a_claimed_address_nothing_is_kept_but_an_address(receiver: Receiver, module_engine: Engine) -> None:
    since = last_refusal(module_engine)
    for claimed in (b"fe80::1%<b>[red]", b"\\[link=x]", b"x" * 5000, b"203.0.113.9\xc2\x9b"):
        assert receiver.ask(b"X-Forwarded-For: " + claimed).status == 401
    assert [address for _, address in told(module_engine, since, 4)] == ["fe80::1", None, None, None]


def test_a_connection_that_was_reset_comes_from_nobody(receiver: Receiver, module_engine: Engine) -> None:
    """Its request is read although it has no address any more; Falcon takes 127.0.0.1 for that, a proxy's."""
    (worker,) = children_of(receiver.program.pid)
    since, known = last_refusal(module_engine), count(module_engine, "inbox")
    os.kill(worker, signal.SIGSTOP)
    try:
        address = ("127.0.0.1", receiver.port)
        with socket.create_connection(address, timeout=10, source_address=("127.0.0.8", 0)) as sender:
            sender.sendall(webhook(b"X-Forwarded-For: 192.0.2.1", line=LINE, payload=body("reset", moment(1))))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        os.kill(worker, signal.SIGCONT)
    assert receiver.ask(b"X-Forwarded-For: 203.0.113.9").status == 401
    assert {address for _, address in told(module_engine, since, 1)} <= {None, "203.0.113.9"}
    assert count(module_engine, "inbox") == known


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((b"X-Forwarded-For: 192.0.2.1",), 200),
        ((b"X-Forwarded-For: ::ffff:192.0.2.1",), 200),
        ((b"X-Forwarded-For: 2001:db8::7",), 200),
        ((b"X-Forwarded-For: [2001:db8::7]:443",), 200),
        ((b"X-Forwarded-For: 192.0.2.1:4711",), 200),
        ((b"X-Forwarded-For: 203.0.113.9, 192.0.2.1",), 200),  # the last is what the proxy has seen
        ((b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-For: 192.0.2.1"), 200),
        ((b"X-Forwarded-For: 192.0.2.1, 127.0.0.1",), 200),  # two proxies of ours
        ((b"X-Forwarded-For: 192.0.2.1, 203.0.113.9",), 401),  # the first is what the sender has claimed
        ((b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-For: 203.0.113.9"), 401),
        ((b"X-Forwarded-For: 192.0.2.1, 203.0.113.9, 127.0.0.1",), 401),
        ((b"X-Forwarded-For: 192.0.2.1,",), 401),
        ((b"X-Forwarded-For: 2001:db8::8",), 401),
        ((b"X-Forwarded-For: unknown",), 401),
        ((b"X-Forwarded-For: 192.0.2.1 ; 203.0.113.9",), 401),
        ((b"X-Forwarded-For: \xff",), 401),
        ((b"X-Forwarded-For:",), 401),
        ((b"Forwarded: for=192.0.2.1",), 401),
        ((b"X-Real-IP: 192.0.2.1",), 401),
        ((b"X-Client-IP: 192.0.2.1", b"CF-Connecting-IP: 192.0.2.1", b"True-Client-IP: 192.0.2.1"), 401),
        ((), 401),
    ],
)  # fmt: skip
def test_a_proxy_is_believed_and_of_what_it_says_only_its_own_part(
    receiver: Receiver, fields: tuple[bytes, ...], status: int
) -> None:
    for of in ("127.0.0.1", None, *([f"{MAPPED}127.0.0.1"] if DUAL else [])):
        assert receiver.ask(*fields, of=of).status == status, of


def test_who_is_no_proxy_is_believed_nothing(receiver: Receiver) -> None:
    for fields in ((b"X-Forwarded-For: 192.0.2.1",), (b"X-Forwarded-For: 127.0.0.9",), (b"Forwarded: for=192.0.2.1",)):
        assert receiver.ask(*fields, of="127.0.0.8").status == 401
        assert not DUAL or receiver.ask(*fields, of=f"{MAPPED}127.0.0.8").status == 401
    assert receiver.ask(b"X-Forwarded-For: 203.0.113.9", of="127.0.0.9").status == 200
    assert not DUAL or receiver.ask(b"X-Forwarded-For: 203.0.113.9", of=f"{MAPPED}127.0.0.9").status == 200


def test_it_does_not_start_when_everybody_may_claim_any_address(sqlite_place: Site, sqlite_database_url: str) -> None:
    sqlite_place.configure(config_text(sqlite_database_url) + SOURCE)
    for program in [
        sqlite_place.refused_receiver(FORWARDED_ALLOW_IPS=proxies) for proxies in ("*", "0.0.0.0/0", "127.0.0.1,::/0")
    ]:
        assert program.ends() != 0
        assert "[sources.guarded] allow_from: FORWARDED_ALLOW_IPS lets every sender claim any address" in program.output
