"""Random requests from a seed, by a grammar and by mutation, and the rules for every response."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.helpers.receiver import CLOSE, HOST, JSON, SECRET, answers, ask, chunk, request
from tests.helpers.webhooks import TOKEN, body, moment

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


def objections(exchange: Exchange, body_of: Callable[[int], bytes | None]) -> list[str]:
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


def statuses(exchanges: Iterable[Exchange]) -> Counter[int]:
    """Count the statuses of first responses; 0 means no response."""
    return Counter(int((each.received or b"HTTP/1.1 0")[9:12] or 0) for each in exchanges)
