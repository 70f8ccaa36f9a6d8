"""Random requests never make the real receiver answer 5xx except 503, die, leak memory, or answer 200 without storing.

`FUZZ_SEED` chooses the requests, `FUZZ_REQUESTS` their number: `make fuzz REQUESTS=50000 SEED=1`.
"""

from __future__ import annotations

import os
import random
import socketserver
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path as Folder
from posixpath import normpath
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from sqlalchemy import Engine

from inbox.errors import MappingError
from relay.sync.expressions import decode, encode
from relay.sync.templates import Path, Template
from tests.helpers.directory import parse_filter
from tests.helpers.processes import site
from tests.helpers.receiver import CLOSE, HOST, JSON, SECRET, answers, ask, chunk, memory_of, request, webhook
from tests.helpers.tables import rows
from tests.helpers.webhooks import TOKEN, body, config_text, moment
from tests.process import malformed

AT_ONCE = 8
WITHIN_SECONDS = 15.0

_NUMBERS = (
    b"1e-99999999999999999999", b"0e99999999999999999999", b"-0", b"-0.0", b"1e-400", b"1e308", b"1e309", b"5e-324",
    b"7" * 1000, b"7" * 1001, b"0." + b"1" * 998, b"1." + b"0" * 5000, b"0." + b"0" * 900 + b"1e900", b"1E+2",
    b"18446744073709551616", b"123456789.12345678901234567890",
)  # fmt: skip
_IDS = (
    'x" or userName eq "admin', "x' or '1' eq '1", "*)(uid=*", "x`y", "{event.entity_id}", "a/../../../admin", "..", "..;/x",
    "%2e%2e%2fadmin", "%252e%252e%255cadmin", "a\\..\\b", "a/b", "x|y>", "a\r\nX: y", "a\x7f\x85b", "\\", '"', "' or ''='",
)  # fmt: skip
_DENSE = (
    b"[],", b"{},", b"1,", b'"",', b'{"":0},', b"[" * 50 + b"]" * 50 + b",", b"1e9,", b"null,",
    b'"\\"\\ud83d\\ude00",', b"[,",
)  # fmt: skip
"""Units to repeat in a body."""
_LONG = (
    b"x", b"\\n", b'\\"', b"\\\\", b"\\u20ac", b"\\ud83d\\ude00", b"\\ud83d", "\N{GRINNING FACE}".encode(), b"[{,:",
    b"\xff",
)  # fmt: skip
"""Units to repeat in a text."""


class Exchange(NamedTuple):
    """Bytes sent, and bytes received or None after a timeout."""

    sent: bytes
    received: bytes | None


def make_request(seed: int, number: int, examples: Sequence[bytes]) -> bytes:
    """Make the request of this number, which depends on the seed alone."""
    chance = random.Random(f"{seed}-{number}")
    sent = _combine(chance, number, examples) if chance.random() < 0.6 else chance.choice(examples)
    if chance.random() < 0.5:
        for _ in range(chance.choice((1, 1, 2, 5))):
            sent = _mutate(chance, sent)
    return sent


def _combine(chance: random.Random, number: int, examples: Sequence[bytes]) -> bytes:
    """Return the line of one example, the fields of two, and a body, mostly of the length that it says."""
    one, other, lined = (chance.choice(examples).partition(b"\r\n\r\n")[0].split(b"\r\n") for _ in range(3))
    usual = [HOST, JSON, SECRET, CLOSE] if chance.random() < 0.8 else one[1:]
    fields = [*usual, *chance.choice(((), other[1:2], chance.choices(other, k=2)))]
    sent = _body(chance, number)
    line = webhook().partition(b"\r\n")[0] if chance.random() < 0.5 else lined[0]
    if chance.random() < 0.3:
        cut, ends = (
            chance.randrange(len(sent) + 1),
            (b"0\r\n\r\n", b"0\r\nX-Webhook-Token: a\r\n\r\n", b"0;a=b\r\n\r\n", b""),
        )
        chunks = b"".join(chunk(part) for part in (sent[:cut], sent[cut:]) if part) + chance.choice(ends)
        return request(*fields, b"Transfer-Encoding: chunked", line=line, payload=chunks)
    length = max(len(sent) + chance.choice((0, 0, 0, 0, -1, 100)), 0)
    return request(*fields, b"Content-Length: %d" % length, line=line, payload=sent)


def _body(chance: random.Random, number: int) -> bytes:
    made = body(f"u{number}", moment(number))
    match chance.randrange(8):
        case 0:
            return made[:-1] + b',"more":' + _much(chance) + b"}"
        case 1:
            return made.replace(b'"USER"', b'"USER", "n": ' + chance.choice(_NUMBERS))
        case 2 | 3:
            return body(chance.choice(_IDS), moment(number))
    return made


def _much(chance: random.Random) -> bytes:
    unit, size = chance.choice((*_DENSE, *_LONG)), chance.choice((300, 300, 70_000, 300_000))
    begin, end = (b"[", b"0]") if unit in _DENSE else (b'"', b'"')
    return begin + unit * (size // len(unit)) + end


def _mutate(chance: random.Random, sent: bytes) -> bytes:
    """Return `sent` with a piece lost, doubled or replaced."""
    start = chance.randrange(len(sent) + 1)
    end = min(len(sent), start + chance.choice((0, 1, 1, 2, 8, 40)))
    put = chance.choice(
        (b"", b"\0", b"\r\n", b"\n", b" ", b":", b"\xff", b"\t", sent[start:end] * 2, chance.randbytes(3), b"\r\n\r\n")
    )
    return sent[:start] + put + sent[end:]


def run(port: int, requests: Iterable[bytes]) -> list[Exchange]:
    """Send each request over its own half-closed connection, several at once."""

    def exchange(sent: bytes) -> Exchange:
        try:
            return Exchange(sent, ask(port, sent, half_close=True, within=WITHIN_SECONDS))
        except TimeoutError:
            return Exchange(sent, None)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(exchange, requests))


def find_objections(exchange: Exchange, body_of: Callable[[int], bytes | None]) -> list[str]:
    """Return all violations in the response; `body_of` returns the stored body of a seq, or None."""
    if exchange.received is None:
        return ["no end"]
    try:
        found = answers(exchange.received, heads=b"HEAD" in exchange.sent)
    except (AssertionError, ValueError) as error:
        return [f"no answer of HTTP: {error}"]
    wrong = [] if found or not exchange.sent.strip(b"\r\n") else ["no answer"]
    for answer in found:
        if answer.status >= 500 and answer.status != 503:
            wrong.append(f"{answer.status}")
        if not 200 <= answer.status < 300:
            continue
        if answer.seq and TOKEN.encode() not in exchange.sent:
            wrong.append("200 without the secret")
        stored = body_of(answer.seq) if answer.seq else b""
        if stored is None:
            wrong.append(f"200 for {answer.seq}, which is not stored")
        elif b'"accepted"' in answer.body and not _is_in(stored, exchange.sent):
            wrong.append(f"200 for {answer.seq}, which has another body")
        if (
            b"POST" in exchange.sent
            and not answer.seq
            and b"GET" not in exchange.sent
            and b"OPTIONS" not in exchange.sent
        ):
            wrong.append("200 for a webhook, without a seq")
    return wrong


def _is_in(stored: bytes, sent: bytes) -> bool:
    """Return whether all bytes were sent in this order, possibly in chunks."""
    rest = iter(sent)
    return all(byte in rest for byte in stored)


def count_statuses(exchanges: Iterable[Exchange]) -> Counter[int]:
    """Count the statuses of first responses; 0 means no response."""
    return Counter(int((each.received or b"HTTP/1.1 0")[9:12] or 0) for each in exchanges)


# --- Random requests never make the real receiver answer 5xx except 503, die, leak memory, or answer 200 without storing


SEED = int(os.environ.get("FUZZ_SEED", "1"))
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "2000"))
MOST_GROWTH = 20 * 1024 * 1024
EXAMPLES = [case.sent for case in malformed.TABLE if len(case.sent) < 20_000]
SEEN = {200, 400, 401, 404, 405, 413, 414, 415, 417, 422, 431}
"""Statuses that must occur among 2,000 requests."""


def read_bodies(engine: Engine) -> Callable[[int], bytes | None]:
    bodies = {row["seq"]: bytes(row["body"]) for row in rows(engine, "SELECT seq, body FROM inbox_payload")}
    return bodies.get


def describe(exchanges: list[Exchange], body_of: Callable[[int], bytes | None]) -> list[str]:
    """Return a line for each exchange with a violation."""
    return [
        f"FUZZ_SEED={SEED}: {wrong}: {exchange.sent[:500]!r} → {(exchange.received or b'')[:200]!r}"
        for exchange in exchanges
        if (wrong := find_objections(exchange, body_of))
    ]


def unusable(engine: Engine) -> list[str]:
    """Return a line for each stored event whose body, or id in a query or path, a relay cannot use."""
    query = Template("externalId eq {event.entity_id:scim}", "find", ("event",))
    path = Path("/user/{event.entity_id}", "fetch", ("event",))
    wrong = []
    for row in rows(engine, "SELECT seq, body, entity_id FROM inbox JOIN inbox_payload USING (seq)"):
        scope = {"event": {"entity_id": row["entity_id"]}}
        try:
            encode(decode(bytes(row["body"])))
            passes = parse_filter(query.expand(scope))
            if not passes({"externalId": row["entity_id"]}) or passes({"externalId": "", "userName": "admin"}):
                wrong.append(f"{row['seq']}: another is found for {row['entity_id']!r}")
            with suppress(MappingError):
                if not normpath(unquote(unquote(path.expand(scope)))).startswith("/user/"):
                    wrong.append(f"{row['seq']}: {row['entity_id']!r} leads elsewhere")
        except (ValueError, ArithmeticError) as error:
            wrong.append(f"{row['seq']}: {error!r}")
    return wrong


@pytest.mark.long
def test_random_requests_do_no_harm(module_database_url: str, module_engine: Engine, tmp_path: Folder) -> None:
    requests = [make_request(SEED, number, EXAMPLES) for number in range(1, REQUESTS + 1)]
    with site(tmp_path, config_text(module_database_url)) as place:
        program, port = place.receiver(workers=1)
        (worker,) = program.children()
        exchanges = run(port, requests[: REQUESTS // 4])  # fills all caches
        before = memory_of(worker)
        exchanges += run(port, requests[REQUESTS // 4 :])

        assert describe(exchanges, read_bodies(module_engine)) == []
        assert unusable(module_engine) == []
        assert program.children() == [worker]
        assert [answer.status for answer in answers(ask(port, webhook()))] == [200]
        assert memory_of(worker) - before < MOST_GROWTH
        assert "Traceback" not in program.output
    seen = count_statuses(exchanges)
    assert seen.keys() >= SEEN, seen
    assert seen[200] > REQUESTS // 20, seen


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Run a server that always gives the same response; yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                pass
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def saying(status: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


KNOWN = saying("200 OK", b'{"status":"duplicate","seq":7}')


@pytest.mark.parametrize(
    ("sent", "answer", "wrong"),
    [
        (webhook(), saying("503 Service Unavailable"), []),
        (webhook(), saying("400 Bad Request"), []),
        (webhook(), KNOWN, []),
        (b"POST / HTTP/1.1\r\n\r\n", KNOWN, ["200 without the secret"]),
        (webhook(), saying("500 Internal Server Error"), ["500"]),
        (webhook(), saying("502 Bad Gateway"), ["502"]),
        (webhook(), saying("200 OK", b'{"status":"accepted","seq":8}'), ["200 for 8, which is not stored"]),
        (webhook(), saying("200 OK", b'{"status":"accepted","seq":7}'), ["200 for 7, which has another body"]),
        (webhook(), saying("200 OK"), ["200 for a webhook, without a seq"]),
        (webhook(), b"", ["no answer"]),
        (webhook(), saying("400 Bad Request", b"so")[:-1], ["no answer of HTTP: an answer is cut"]),
    ],
)
def test_only_a_server_that_breaks_a_rule_is_caught(sent: bytes, answer: bytes, wrong: list[str]) -> None:
    with answering(answer) as port:
        (exchange,) = run(port, [sent])
    assert find_objections(exchange, {7: b"another"}.get) == wrong


def test_a_server_that_never_ends_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "WITHIN_SECONDS", 0.1)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        (exchange,) = run(server.server_address[1], [webhook()])
    assert find_objections(exchange, lambda _: None) == ["no end"]
