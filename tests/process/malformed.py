"""Malformed and borderline requests, one line each, with the status of the response.

`0` is a connection that closes without a response. A tuple has the responses to several requests on one connection.
"""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

from inbox.http.head import LARGEST_HEAD, LONGEST_FIELD, LONGEST_TARGET
from tests.helpers.receiver import CLOSE, HOST, JSON, SECRET, as_chunks, chunk, request, webhook
from tests.helpers.webhooks import TOKEN, body, payload

CAP = 256 * 1024
LENGTH = b"Content-Length: %d" % len(body())
FORM = b"Content-Type: application/x-www-form-urlencoded"


class Case(NamedTuple):
    number: int
    name: str
    sent: bytes
    status: int | tuple[int, ...]
    half_close: bool = False
    """The sender shuts down its half of the connection after the request."""


def replace(field: bytes, *fields: bytes, payload: bytes | None = None) -> bytes:
    return webhook(*fields, without=(field,), payload=payload)


def line(text: bytes) -> bytes:
    return webhook(line=text)


def length(text: bytes) -> bytes:
    return replace(LENGTH, b"Content-Length: " + text)


def coding(text: bytes) -> bytes:
    return replace(LENGTH, b"Transfer-Encoding: " + text, payload=chunk(body()) + b"0\r\n\r\n").replace(
        b"Content-Length: %d\r\n" % len(chunk(body()) + b"0\r\n\r\n"), b""
    )


LARGEST = body("cap", more="x" * (CAP - len(body("cap", more=""))))
END = b"0\r\n\r\n"
WHOLE = chunk(body())
GET = request(HOST, CLOSE, line=b"GET /health/live HTTP/1.1")
GO_ON = webhook(without=(CLOSE,))
MANY = [b"X-%d: 1" % n for n in range(100)]
UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")

# fmt: off
FRAMING = (
    Case(1, "Content-Length and Transfer-Encoding", webhook(b"Transfer-Encoding: chunked"), 400),
    Case(2, "two Content-Length that differ", webhook(b"Content-Length: 7"), 400),
    Case(3, "two Content-Length that are equal", webhook(LENGTH), 400),
    Case(4, "Content-Length with a comma", length(b"7, 7"), 400),
    Case(5, "Content-Length -1", length(b"-1"), 400),
    Case(6, "Content-Length +7", length(b"+7"), 400),
    Case(7, "Content-Length 0_7", length(b"0_7"), 400),
    Case(8, "Content-Length 0x7", length(b"0x7"), 400),
    Case(9, "Content-Length of 5,000 digits", length(b"7" * 5000), 400),
    # 413 would do as well, but no body can be longer than 64 bits can count
    Case(10, "Content-Length 10^20", length(b"1" + b"0" * 20), 400),
    Case(10, "Content-Length 10^18", length(b"1" + b"0" * 18), 413),
    Case(11, "a body as large as it may be", webhook(payload=LARGEST), 200),
    Case(11, "chunks as large as they may be together", as_chunks(chunk(LARGEST), END), 200),
    Case(11, "Content-Length beyond the cap", length(b"%d" % (CAP + 1)), 413),
    Case(11, "a body beyond the cap that is sent whole", webhook(payload=body(more="x" * 4 * CAP)), 413),
    Case(12, "a body that is shorter than its length, then the end", length(b"%d" % (len(body()) + 9)), 400, half_close=True),
    Case(13, "another request behind the body", GO_ON + GET, (200, 200)),
    Case(13, "bytes behind the body that are no request", GO_ON + b"\0\0\0", (200,)),
    Case(14, "no Content-Length and no chunks: an empty body", request(HOST, JSON, SECRET, CLOSE), 400),
    Case(15, "chunks", as_chunks(WHOLE, END), 200),
    Case(16, "a chunk of the size ZZ", as_chunks(WHOLE, b"ZZ\r\n"), 400),
    Case(17, "the end before the last chunk", as_chunks(WHOLE), 400, half_close=True),
    Case(18, "the end inside the last chunk", as_chunks(WHOLE, b"0\r\n"), 400, half_close=True),
    Case(19, "chunks of one byte beyond the cap", as_chunks(chunk(b"x") * (CAP + 1), END), 413),
    Case(20, "a chunk's extension with a bare CR", as_chunks(b"2;a\rb\r\n{}\r\n", END), 400),
    Case(20, "a chunk's extension that does not end", as_chunks(b"2;" + b"a" * 20 * LARGEST_HEAD), 400),
    Case(21, "a trailer that would be the length", as_chunks(WHOLE, b"0\r\nContent-Length: 7\r\n\r\n"), 400),
    Case(21, "a trailer that would be the secret", as_chunks(WHOLE, b"0\r\n%b\r\n\r\n" % SECRET).replace(SECRET, b"A: b", 1), 401),
    Case(21, "a trailer that is nothing to us", as_chunks(WHOLE, b"0\r\nX-Checksum: 7\r\n\r\n"), 200),
    Case(21, "a trailer that does not end", as_chunks(WHOLE, b"0\r\nX: " + b"a" * 20 * LARGEST_HEAD), 400),
    # 501 is for codings (RFC 9112 §6.1), but a 5xx says "send it again", and that would not help
    Case(22, "Transfer-Encoding xchunked", coding(b"xchunked"), 400),
    Case(23, "Transfer-Encoding chunked, gzip", coding(b"chunked, gzip"), 400),
    Case(24, "Transfer-Encoding gzip, chunked", coding(b"gzip, chunked"), 400),
    Case(24, "Transfer-Encoding twice", coding(b"gzip\r\nTransfer-Encoding: chunked"), 400),
    Case(25, "Transfer-Encoding identity", coding(b"identity"), 400),
    Case(26, "Transfer-Encoding with a vertical tab", coding(b"\x0bchunked"), 400),
    Case(27, "a space before the colon", coding(b"chunked").replace(b"Encoding:", b"Encoding :"), 400),
    Case(28, "chunks in HTTP/1.0", coding(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
)

REQUEST_LINE = (
    Case(29, "a line of 5,000 bytes", line(b"POST /" + b"a" * 5000 + b" HTTP/1.1"), 414),
    Case(29, "a query of 5,000 bytes", line(b"POST /webhooks/trivore?" + b"a" * 5000 + b" HTTP/1.1"), 414),
    Case(29, "a line that does not end", b"POST /" + b"a" * 10 * LARGEST_HEAD, 414),
    Case(30, "post", line(b"post /webhooks/trivore HTTP/1.1"), 400),
    Case(31, "FOO", line(b"FOO /webhooks/trivore HTTP/1.1"), 400),
    Case(31, "SOURCE, a method of Icecast's", line(b"SOURCE /webhooks/trivore HTTP/1.1"), 400),
    Case(31, "PROPFIND, a method of WebDAV's", line(b"PROPFIND /webhooks/trivore HTTP/1.1"), 405),
    Case(32, "HTTP/2.0", line(b"POST /webhooks/trivore HTTP/2.0"), 400),
    Case(32, "HTTP/9.9", line(b"POST /webhooks/trivore HTTP/9.9"), 400),
    Case(33, "HTTP/0.9", b"GET /health/live\r\n\r\n", 400),
    Case(33, "HTTP/0.9 that waits for its answer", b"GET /health/live\r\n", 400, half_close=True),
    Case(34, "a TLS ClientHello", bytes.fromhex("16030102000100 01fc0303") + bytes(200), 400),
    Case(35, "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    # RFC 9112 §2.2 asks to ignore them: senders of old have left them behind a body
    Case(36, "empty lines before it", b"\r\n\r\n" + webhook(), 200),
    Case(37, "a space in the target", line(b"POST /webhooks/tri vore HTTP/1.1"), 400),
    Case(38, "a NUL in the target", line(b"POST /webhooks/tri\0vore HTTP/1.1"), 400),
    Case(38, "bytes beyond ASCII in the target", line(b"POST /webhooks/tri\xc3\xa4 HTTP/1.1"), 400),
    Case(38, "bytes beyond ASCII in the query", line(b"POST /webhooks/trivore?\xff HTTP/1.1"), 400),
    Case(39, "the URL of another host", line(b"POST http://other/webhooks/trivore HTTP/1.1"), 400),
    # RFC 9112 §3.2.2: a server MUST accept it
    Case(39, "the URL of the host that Host names", line(b"POST http://localhost/webhooks/trivore HTTP/1.1"), 200),
    Case(39, "a URL without a path", line(b"POST http://localhost HTTP/1.1"), 400),
    Case(40, "*", line(b"GET * HTTP/1.1"), 400),
    # 405 would do as well, but the target is not a path, as in 40
    Case(41, "CONNECT", line(b"CONNECT example.com:443 HTTP/1.1"), 400),
    Case(42, "a fragment", line(b"POST /webhooks/trivore#a HTTP/1.1"), 400),
    # 404 would do as well, but Falcon takes it for /webhooks/trivore, and others for a host called webhooks
    Case(43, "//webhooks", line(b"POST //webhooks/trivore HTTP/1.1"), 400),
    Case(43, "/webhooks//", line(b"POST /webhooks//trivore HTTP/1.1"), 401),
    # a second segment is a token (which this source does not ask for): an empty one is not there
    Case(44, "a slash at the end", line(b"POST /webhooks/trivore/ HTTP/1.1"), 200),
    # paths are not normalized, so `..` is an unknown source like any other
    Case(45, "/webhooks/../x", line(b"POST /webhooks/../x HTTP/1.1"), 401),
    Case(45, "/webhooks/../health/live", line(b"POST /webhooks/../health/live HTTP/1.1"), 404),
    Case(46, "the same in escapes", line(b"POST /webhooks/%2e%2e%2fx HTTP/1.1"), 401),
    Case(47, "a source with a NUL", line(b"POST /webhooks/a%00b HTTP/1.1"), 401),
    Case(48, "a source that is not UTF-8", line(b"POST /webhooks/%ff HTTP/1.1"), 401),
    Case(49, "a source with a percent sign", line(b"POST /webhooks/%zz HTTP/1.1"), 401),
    Case(50, "a source of 10,000 characters", line(b"POST /webhooks/" + b"a" * 10_000 + b" HTTP/1.1"), 414),
    Case(50, "a source as long as the target may be", line(b"POST /webhooks/" + b"a" * (LONGEST_TARGET - 10) + b" HTTP/1.1"), 401),
    Case(51, "a source that there is not", line(b"POST /webhooks/nobody HTTP/1.1"), 401),
    Case(51, "the token where the source should be", line(b"POST /webhooks/" + TOKEN.encode() + b" HTTP/1.1"), 401),
)

HEADERS = (
    Case(52, "no Host", webhook(without=(HOST,)), 400),
    Case(52, "no Host in HTTP/1.0", webhook(without=(HOST,), line=b"POST /webhooks/trivore HTTP/1.0"), 200),
    Case(53, "two Host", webhook(HOST), 400),
    Case(53, "a Host that is none", replace(HOST, b"Host: a b"), 400),
    Case(54, "two Content-Type", webhook(JSON), 400),
    # without CGI, X_Webhook_Token and X-Webhook-Token stay two names; refusing such names would only lose webhooks
    Case(55, "an underscore in a name", webhook(b"X_Signature: 1"), 200),
    Case(55, "the secret under a name with underscores", replace(SECRET, SECRET.replace(b"-W", b"_W").replace(b"-T", b"_T")), 401),
    Case(56, "a NUL in a value", webhook(b"X-A: a\0b"), 400),
    Case(57, "ESC in a User-Agent", webhook(b"User-Agent: \x1b[31m"), 400),
    Case(58, "lines that end in LF alone", webhook().replace(b"\r\n", b"\n"), 400),
    Case(58, "one line that ends in LF alone", webhook(b"X-A: b\nX-B: c"), 400),
    Case(59, "a folded line", webhook(b"X-A: b\r\n c"), 400),
    Case(60, "no colon", webhook(b"X-A"), 400),
    Case(61, "no name", webhook(b": a"), 400),
    Case(61, "bytes beyond ASCII in a name", webhook(b"X-\xc3\xa4: a"), 400),
    Case(62, "more than 100 headers", webhook(*MANY), 431),
    Case(62, "more bytes of headers than there may be", webhook(*(b"X-A: " + b"a" * 8000 for _ in range(5))), 431),
    Case(63, "a header of 9,000 bytes", webhook(b"X-A: " + b"a" * 9000), 431),
    Case(63, "a header as long as it may be", webhook(b"X-A: " + b"a" * (LONGEST_FIELD - 7)), 200),
    Case(63, "a header that does not end", webhook()[:40] + b"\r\nX-A: " + b"a" * 20 * LARGEST_HEAD, 431),
    Case(64, "bytes beyond ASCII in a value", webhook(b"User-Agent: \xff\xfe"), 200),
    Case(65, "Expect: 100-continue, beyond the cap", replace(LENGTH, b"Expect: 100-continue", b"Content-Length: 999999"), 413),
    Case(65, "Expect: 100-continue", webhook(b"Expect: 100-continue"), 200),
    Case(66, "Expect: 200-maybe", webhook(b"Expect: 200-maybe"), 417),
    Case(67, "Upgrade: websocket", replace(CLOSE, b"Connection: Upgrade, close", b"Upgrade: websocket"), 200),
    Case(67, "Upgrade: h2c", replace(CLOSE, *UPGRADE, b"Connection: close"), 200),
    Case(67, "Upgrade: h2c and another request behind it", replace(CLOSE, *UPGRADE) + GET, (200, 200)),
    Case(67, "Upgrade: h2c with chunks", as_chunks(WHOLE, END, more=UPGRADE), 200),
    Case(67, "Upgrade: h2c in chunks that are none", as_chunks(WHOLE, b"ZZ\r\n", more=UPGRADE), 400),
)

METHOD_AND_TYPE = (
    Case(68, "GET", line(b"GET /webhooks/trivore HTTP/1.1"), 405),
    Case(69, "PUT", line(b"PUT /webhooks/trivore HTTP/1.1"), 405),
    Case(69, "PUT before its body has come", line(b"PUT /webhooks/trivore HTTP/1.1")[:-9], 405),
    Case(70, "TRACE", line(b"TRACE /webhooks/trivore HTTP/1.1"), 405),
    Case(71, "OPTIONS", line(b"OPTIONS /webhooks/trivore HTTP/1.1"), 405),
    Case(72, "text/plain", replace(JSON, b"Content-Type: text/plain"), 415),
    Case(73, "no Content-Type", webhook(without=(JSON,)), 415),
    Case(74, "charset=utf-7", replace(JSON, JSON + b"; charset=utf-7"), 415),
    Case(75, "in capitals", replace(JSON, b"Content-Type: APPLICATION/JSON; charset=UTF-8"), 200),
    # a preset names the types that its provider sends
    Case(76, "application/vnd.x+json", replace(JSON, b"Content-Type: application/vnd.x+json"), 415),
    Case(77, "a form", replace(JSON, FORM), 415),
    Case(78, "multipart without a boundary", replace(JSON, b"Content-Type: multipart/form-data"), 415),
    Case(79, "Content-Encoding: gzip", webhook(b"Content-Encoding: gzip"), 415),
)
# fmt: on


# --- HTTP requests without a valid event or a valid secret


CONFIG = f"""
[sources.basic]
preset = "trivore"
auth = {{ kind = "basic", user = "u", secrets = ["{TOKEN}"] }}
[sources.bearer]
preset = "trivore"
auth = {{ kind = "bearer", secrets = ["{TOKEN}"] }}
[sources.url]
preset = "trivore"
auth = {{ kind = "url_token", secrets = ["{TOKEN}"] }}
[sources.other]
preset = "trivore"
auth = {{ kind = "bearer", secrets = ["another"] }}
[sources.slow]
preset = "trivore"
rate = "2/d"
auth = {{ kind = "bearer", secrets = ["{TOKEN}"] }}
"""
"""Sources in addition to those of `tests/helpers/webhooks.py`."""


def post(text: bytes) -> bytes:
    return webhook(payload=text)


def add(member: bytes) -> bytes:
    """Make a webhook whose object has one more member, `n`."""
    return post(body()[:-1] + b', "n": ' + member + b"}")


def change(**members: object) -> bytes:
    """Make a webhook with these members changed; None removes one."""
    changed = {**payload(), **members}
    return post(json.dumps({name: value for name, value in changed.items() if value is not None}).encode())


def date(time: object) -> bytes:
    return change(timestamp=time)


def authorize(source: str, *authorization: str | bytes) -> bytes:
    """Make a webhook for `source` with these Authorization headers instead of the secret."""
    values = [value if isinstance(value, bytes) else value.encode() for value in authorization]
    return webhook(
        *(b"Authorization: " + value for value in values),
        line=f"POST /webhooks/{source} HTTP/1.1".encode(),
        without=(SECRET,),
    )


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


GOOD_BASIC = basic("u", TOKEN)
DEEP = b'{"a":'
NO_IDS: tuple[object, ...] = (None, {}, [], "", "i" * 256, "i" * 9000, False)

# fmt: off
JSON_BODIES = (
    Case(80, "empty", post(b""), 400),
    Case(81, "cut", post(b'{"a":'), 400),
    Case(82, "something behind it", post(body() + b"x"), 400),
    Case(83, "a byte order mark", post(b"\xef\xbb\xbf" + body()), 400),
    Case(84, "UTF-16", post(body().decode().encode("utf-16")), 400),
    Case(85, "no UTF-8", post(body("\x80").replace(b"\\u0080", b"\xff")), 400),
    Case(86, "a NUL in a text", post(body("x").replace(b'"x"', b'"\0"')), 400),
    Case(86, "a line's end in a text", post(body("x").replace(b'"x"', b'"\n"')), 400),
    Case(87, "NaN", add(b"NaN"), 400),
    Case(88, "Infinity", add(b"-Infinity"), 400),
    Case(89, "1e999", add(b"1e999"), 400),
    Case(90, "5,000 digits", add(b"7" * 5000), 400),
    Case(91, "half of a surrogate pair", add(b'"\\ud800"'), 400),
    Case(92, "an escaped NUL where it has to be stored", change(id="a\0b"), 422),
    # the body is stored as bytes, and these are six harmless ones
    Case(92, "an escaped NUL elsewhere", add(b'"\\u0000"'), 200),
    Case(93, "a key twice", add(b'1, "n": 2'), 400),
    Case(94, "65 levels", post(DEEP * 65 + b"1" + b"}" * 65), 400),
    Case(95, "1,000 levels", post(DEEP * 1000 + b"1" + b"}" * 1000), 400),
    Case(96, "40,000 levels", post(DEEP * 40_000 + b"1" + b"}" * 40_000), 400),
    Case(96, "100,000 levels that do not end", post(b"[" * 100_000), 400),
    *(Case(97, f"{text} alone", post(text.encode()), 422) for text in ("1", "null", "[]", '"a"', "true")),
    # an object may have as many keys as fit into the cap: C code parses them, and nothing uses them
    Case(98, "20,000 keys", add(b"1, " + b", ".join(b'"k%d":1' % n for n in range(20_000))[:-1] + b"1"), 200),
)

EVENTS = (
    *(Case(99, f"id {wrong!r:.20}", change(id=wrong), 422) for wrong in NO_IDS),
    # docs: strings and numbers are not converted into each other
    Case(100, "id 1", change(id=1), 422),
    Case(100, 'id "1"', change(id="1"), 200),
    *(Case(101, f"timestamp {wrong!r}", date(wrong), 422) for wrong in (
        None, "", "2026-01-01T00:00:00", "2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z", "2026-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "infinity", "\uff12026-01-01T00:00:00Z",
        "2026-01-01T00:00:00+24:00", 1704067200, "2026-01-01 00:00:00Z ", "1999-12-31T23:59:59Z",
    )),
    Case(102, "timestamp far ahead", date("9998-01-01T00:00:00Z"), 422),
    Case(103, "the same instant in another spelling", webhook(without=(CLOSE,), payload=body("u103", "2026-01-01T00:00:00Z"))
         + webhook(payload=body("u103", "2026-01-01T02:00:00.000+02:00")), (200, 200)),
    # 409 would make senders retry a stored event: this is a duplicate request, whose different body is kept too
    Case(104, "the same event with another body", webhook(without=(CLOSE,), payload=body("u104"))
         + webhook(payload=body("u104", more=1)), (200, 200)),
    Case(105, "entityType missing", change(entityType=None), 422),
    Case(105, "eventType missing", change(eventType=None), 422),
)

SECRETS = (
    Case(106, "no secret", webhook(without=(SECRET,)), 401),
    Case(107, "a wrong secret", replace(SECRET, SECRET + b"x"), 401),
    Case(107, "the right bearer", authorize("bearer", f"Bearer {TOKEN}"), 200),
    Case(107, "the right user and password", authorize("basic", GOOD_BASIC), 200),
    Case(107, "the right token in the URL", authorize(f"url/{TOKEN}"), 200),
    Case(107, "a wrong secret and a body that is no JSON", webhook(b"X-A: b", without=(SECRET,), payload=b"{"), 401),
    Case(109, "a secret beyond ASCII", replace(SECRET, b"X-Webhook-Token: \xc3\xa9\xff"), 401),
    Case(109, "a bearer beyond ASCII", authorize("bearer", b"Bearer \xc3\xa9\xff"), 401),
    Case(109, "a token beyond ASCII in the URL", authorize("url/%C3%A9%FF"), 401),
    Case(110, "base64 with junk in it", authorize("basic", GOOD_BASIC[:9] + "!" + GOOD_BASIC[9:]), 401),
    Case(110, "no base64", authorize("basic", "Basic \x7e\x7e"), 401),
    Case(110, "another scheme", authorize("basic", GOOD_BASIC.replace("Basic", "Digest")), 401),
    Case(112, "another source's secret", authorize("other", f"Bearer {TOKEN}"), 401),
    Case(116, "the secret twice", webhook(SECRET), 401),
    Case(116, "a wrong secret before the right one", replace(SECRET, b"X-Webhook-Token: wrong", SECRET), 401),
    Case(116, "the right secret before a wrong one", webhook(b"X-Webhook-Token: wrong"), 401),
    Case(116, "two bearers", authorize("bearer", f"Bearer {TOKEN}", f"Bearer {TOKEN}"), 401),
)

# tests/sources/test_contract.py tries the signatures of each preset.
LOAD = (
    Case(120, "a source that has been taken out of the configuration", webhook(line=b"POST /webhooks/gone HTTP/1.1"), 401),
    Case(121, "beyond the source's rate", authorize("slow", f"Bearer {TOKEN}").replace(CLOSE + b"\r\n", b"") * 2
         + authorize("slow", f"Bearer {TOKEN}"), (200, 200, 429)),
    Case(122, "the sender goes away in mid-body", webhook()[:-9], 400, half_close=True),
)
# fmt: on

TABLE = (*FRAMING, *REQUEST_LINE, *HEADERS, *METHOD_AND_TYPE, *JSON_BODIES, *EVENTS, *SECRETS, *LOAD)
