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

_LINES = (
    *(b"POST /webhooks/trivore HTTP/1.1",) * 8,
    b"POST /webhooks/trivore HTTP/1.0", b"POST /webhooks/nobody HTTP/1.1", b"POST /webhooks/trivore/token HTTP/1.1",
    b"POST http://localhost/webhooks/trivore HTTP/1.1", b"POST //webhooks/trivore HTTP/1.1", b"POST /webhooks HTTP/1.1",
    b"PUT /webhooks/trivore HTTP/1.1", b"GET /webhooks/trivore HTTP/1.1", b"HEAD /webhooks/trivore HTTP/1.1",
    b"GET /health/ready HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT localhost:1 HTTP/1.1", b"POST /webhooks/%00 HTTP/1.1",
    b"POST /webhooks/" + b"a" * 5000 + b" HTTP/1.1", b"POST /webhooks/trivore?a=%ff&b HTTP/1.1", b"POST / HTTP/2.0", b"",
)  # fmt: skip
_FIELDS = (
    b"Connection: Upgrade\r\nUpgrade: h2c", b"Connection: keep-alive", b"Expect: 100-continue", b"Expect: x", b"X_A: b",
    b"Content-Encoding: gzip", b"Content-Type: text/plain", b"Content-Type: application/json; charset=utf-8", b"Host: b",
    b"Authorization: Basic \xff", b"User-Agent: \xff\xfe", b"Prefer: wait=0", b"Prefer: respond-async, wait=0", b"X-A:",
    b"X-A: " + b"a" * 9000, b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"Content-Length: 3", b"Cookie: a",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"X-Webhook-Token: wrong", b"X-A: b\r\n c", b"A\0: b",
    b"Trailer: X-Webhook-Token", b"TE: trailers", b"\r\n".join(b"X-%d: a" % n for n in range(99)), b"X-Forwarded-For: ,,a:b:c",
)  # fmt: skip
_VALUES = (
    b"null", b"1e999", b"NaN", b'"\\ud800"', b'"\\u0000"', b"[" * 70, b"7" * 2000, b'""', b'"\xff"', b"{}", b'"2026"',
)  # fmt: skip


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
    sent = _generate(chance, number) if chance.random() < 0.6 or not examples else chance.choice(examples)
    if chance.random() < 0.5:
        for _ in range(chance.choice((1, 1, 2, 5))):
            sent = _mutate(chance, sent)
    return sent


def _generate(chance: random.Random, number: int) -> bytes:
    payload = _payload(chance, number)
    fields = [HOST, JSON, SECRET, CLOSE]
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        fields.pop(chance.randrange(len(fields)))
    fields += chance.choices(_FIELDS, k=chance.choice((0, 0, 0, 1, 1, 3)))
    match chance.randrange(6):
        case 0:
            size = max(len(payload) + chance.choice((-1, 1, 100)), 0)
            fields.append(b"Content-Length: %d" % size)
        case 1 | 2:
            fields.append(b"Transfer-Encoding: chunked")
            cut = chance.randrange(len(payload) + 1)
            end = chance.choice(
                (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX-Webhook-Token: a\r\n\r\n", b"0;a=b\r\n\r\n", b"0\r\n", b"")
            )
            payload = b"".join(chunk(part) for part in (payload[:cut], payload[cut:]) if part) + end
        case _:
            fields.append(b"Content-Length: %d" % len(payload))
    chance.shuffle(fields)
    sent = request(*fields, line=chance.choice(_LINES), payload=payload)
    return sent + _generate(chance, -number) if chance.random() < 0.1 else sent


def _payload(chance: random.Random, number: int) -> bytes:
    made = body(f"u{number}", moment(abs(number)))
    match chance.randrange(10):
        case 0:
            made = made.replace(b'"USER"', chance.choice(_VALUES))
        case 1:
            made = _mutate(chance, made)
        case 2 if chance.random() < 0.2:
            made = body(more="x" * chance.choice((256, 300)) * 1024)
        case 3 if chance.random() < 0.3:
            made = made[:-1] + b',"more":' + _much(chance) + b"}"
        case 4:
            made = made.replace(b'"USER"', b'"USER", "n": ' + chance.choice(_NUMBERS))
        case 5:
            made = body(chance.choice(_IDS), moment(abs(number)))
    return made


def _much(chance: random.Random) -> bytes:
    size = chance.choice((300, 70_000, 250_000))
    if chance.random() < 0.5:
        unit = chance.choice(_DENSE)
        return b"[" + unit * (size // len(unit)) + b"0]"
    unit = chance.choice(_LONG)
    return b'"' + unit * (size // len(unit)) + b'"'


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
