"""Requests written out byte by byte, and the answers to them taken apart: what a sender on the internet may do."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import NamedTuple

from tests.helpers.webhooks import PATH, TOKEN, body

HOST = b"Host: localhost"
JSON = b"Content-Type: application/json"
SECRET = b"X-Webhook-Token: " + TOKEN.encode()
CLOSE = b"Connection: close"

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n")


class Answer(NamedTuple):
    """One answer of several that a connection may give."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seq(self) -> int:
        """Return the seq of the event that it acknowledges; 0: none."""
        return int(json.loads(self.body).get("seq", 0)) if self.status == 200 and b'"seq"' in self.body else 0


def request(*fields: bytes, line: bytes = b"POST " + PATH.encode() + b" HTTP/1.1", payload: bytes = b"") -> bytes:
    """A request of these lines and nothing else."""
    return b"\r\n".join([line, *fields, b"", b""]) + payload


def webhook(
    *more: bytes,
    line: bytes = b"POST " + PATH.encode() + b" HTTP/1.1",
    payload: bytes | None = None,
    without: tuple[bytes, ...] = (),
) -> bytes:
    """A good webhook on a connection that ends behind it, with fields more, and without these."""
    sent = body() if payload is None else payload
    usual = [HOST, JSON, SECRET, CLOSE, b"Content-Length: %d" % len(sent)]
    return request(*(field for field in usual if field not in without), *more, line=line, payload=sent)


def chunked(*chunks: bytes, more: tuple[bytes, ...] = ()) -> bytes:
    """A webhook's head that announces chunks, and these bytes behind it."""
    return request(HOST, JSON, SECRET, CLOSE, b"Transfer-Encoding: chunked", *more) + b"".join(chunks)


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def ask(port: int, sent: bytes, *, half_close: bool = False, within: float = 10.0) -> bytes:
    """Send bytes over a connection of their own; all that comes back until the other side closes.

    Raises:
        TimeoutError: it does not.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=within) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        if half_close:
            with contextlib.suppress(OSError):  # the other side has ended the connection already
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65536):
                received += more
    return received


def answers(received: bytes, *, heads: bool = False) -> list[Answer]:
    """The answers in what came back, without those that only say `100 Continue`.

    Those to HEAD (`heads`) have no bodies, but for those that refuse it before it is known for a HEAD.

    Raises:
        AssertionError: something else is in it than whole answers.
    """
    found = []
    while received:
        line = _STATUS_LINE.match(received)
        assert line, f"no answer begins like this: {received[:80]!r}"
        if line[1] == b"100":
            received = received[line.end() :].removeprefix(b"\r\n")
            continue
        head, _, received = received[line.end() :].partition(b"\r\n\r\n")
        fields = (field.split(b": ", 1) for field in head.split(b"\r\n"))
        headers = {name.decode().lower(): value.decode() for name, value in fields}
        length = 0 if heads and not received.startswith(b"{") else int(headers.get("content-length", "0"))
        assert len(received) >= length, "an answer is cut"
        found.append(Answer(int(line[1]), headers, received[:length]))
        received = received[length:]
    return found


def memory_of(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(resident.split()[1]) * 1024
