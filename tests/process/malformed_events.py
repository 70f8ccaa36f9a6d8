"""The same for what is HTTP, but no event, or from nobody who has proven who it is. See `tests/process/malformed.py`."""

from __future__ import annotations

import base64
import json

from tests.helpers.receiver import CLOSE, SECRET, webhook
from tests.helpers.webhooks import TOKEN, body, payload
from tests.process.malformed import Case, instead

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
"""Sources besides those of `tests/helpers/webhooks.py`."""


def of(text: bytes) -> bytes:
    return webhook(payload=text)


def holding(member: bytes) -> bytes:
    """A webhook with one more member of its object."""
    return of(body()[:-1] + b', "n": ' + member + b"}")


def saying(**members: object) -> bytes:
    """A webhook in which these members are others; None: they are missing."""
    changed = {**payload(), **members}
    return of(json.dumps({name: value for name, value in changed.items() if value is not None}).encode())


def at(time: object) -> bytes:
    return saying(timestamp=time)


def knocking(source: str, *authorization: str | bytes) -> bytes:
    """A webhook for another source, with these values of Authorization."""
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
    Case(80, "empty", of(b""), 400),
    Case(81, "cut", of(b'{"a":'), 400),
    Case(82, "something behind it", of(body() + b"x"), 400),
    Case(83, "a byte order mark", of(b"\xef\xbb\xbf" + body()), 400),
    Case(84, "UTF-16", of(body().decode().encode("utf-16")), 400),
    Case(85, "no UTF-8", of(body("\x80").replace(b"\\u0080", b"\xff")), 400),
    Case(86, "a NUL in a text", of(body("x").replace(b'"x"', b'"\0"')), 400),
    Case(86, "a line's end in a text", of(body("x").replace(b'"x"', b'"\n"')), 400),
    Case(87, "NaN", holding(b"NaN"), 400),
    Case(88, "Infinity", holding(b"-Infinity"), 400),
    Case(89, "1e999", holding(b"1e999"), 400),
    Case(90, "5,000 digits", holding(b"7" * 5000), 400),
    Case(91, "half of a surrogate pair", holding(b'"\\ud800"'), 400),
    Case(92, "an escaped NUL where it has to be stored", saying(id="a\0b"), 422),
    # the body is kept as bytes, and those are six harmless ones
    Case(92, "an escaped NUL elsewhere", holding(b'"\\u0000"'), 200),
    Case(93, "a key twice", holding(b'1, "n": 2'), 400),
    Case(94, "65 levels", of(DEEP * 65 + b"1" + b"}" * 65), 400),
    Case(95, "1,000 levels", of(DEEP * 1000 + b"1" + b"}" * 1000), 400),
    Case(96, "40,000 levels", of(DEEP * 40_000 + b"1" + b"}" * 40_000), 400),
    Case(96, "100,000 levels that do not end", of(b"[" * 100_000), 400),
    *(Case(97, f"{text} alone", of(text.encode()), 422) for text in ("1", "null", "[]", '"a"', "true")),
    # an object may have as many as fit into the cap: they are parsed in C, and nothing is made of them
    Case(98, "20,000 keys", holding(b"1, " + b", ".join(b'"k%d":1' % n for n in range(20_000))[:-1] + b"1"), 200),
)

EVENTS = (
    *(Case(99, f"id {wrong!r:.20}", saying(id=wrong), 422) for wrong in NO_IDS),
    # docs: texts and numbers are not taken for each other
    Case(100, "id 1", saying(id=1), 422),
    Case(100, 'id "1"', saying(id="1"), 200),
    *(Case(101, f"timestamp {wrong!r}", at(wrong), 422) for wrong in (
        None, "", "2026-01-01T00:00:00", "2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z", "2026-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "infinity", "\uff12026-01-01T00:00:00Z",
        "2026-01-01T00:00:00+24:00", 1704067200, "2026-01-01 00:00:00Z ", "1999-12-31T23:59:59Z",
    )),
    Case(102, "timestamp far ahead", at("9998-01-01T00:00:00Z"), 422),
    Case(103, "the same instant in another spelling", webhook(without=(CLOSE,), payload=body("u103", "2026-01-01T00:00:00Z"))
         + webhook(payload=body("u103", "2026-01-01T02:00:00.000+02:00")), (200, 200)),
    # 409 would make senders repeat what is stored: it is a duplicate request, and what differs is kept beside the first
    Case(104, "the same event with another body", webhook(without=(CLOSE,), payload=body("u104"))
         + webhook(payload=body("u104", more=1)), (200, 200)),
    Case(105, "entityType missing", saying(entityType=None), 422),
    Case(105, "eventType missing", saying(eventType=None), 422),
)

SECRETS = (
    Case(106, "no secret", webhook(without=(SECRET,)), 401),
    Case(107, "a wrong secret", instead(SECRET, SECRET + b"x"), 401),
    Case(107, "the right bearer", knocking("bearer", f"Bearer {TOKEN}"), 200),
    Case(107, "the right user and password", knocking("basic", GOOD_BASIC), 200),
    Case(107, "the right token in the URL", knocking(f"url/{TOKEN}"), 200),
    Case(107, "a wrong secret and a body that is no JSON", webhook(b"X-A: b", without=(SECRET,), payload=b"{"), 401),
    Case(109, "a secret beyond ASCII", instead(SECRET, b"X-Webhook-Token: \xc3\xa9\xff"), 401),
    Case(109, "a bearer beyond ASCII", knocking("bearer", b"Bearer \xc3\xa9\xff"), 401),
    Case(109, "a token beyond ASCII in the URL", knocking("url/%C3%A9%FF"), 401),
    Case(110, "base64 with junk in it", knocking("basic", GOOD_BASIC[:9] + "!" + GOOD_BASIC[9:]), 401),
    Case(110, "no base64", knocking("basic", "Basic \x7e\x7e"), 401),
    Case(110, "another scheme", knocking("basic", GOOD_BASIC.replace("Basic", "Digest")), 401),
    Case(112, "another source's secret", knocking("other", f"Bearer {TOKEN}"), 401),
    Case(116, "the secret twice", webhook(SECRET), 401),
    Case(116, "a wrong secret before the right one", instead(SECRET, b"X-Webhook-Token: wrong", SECRET), 401),
    Case(116, "the right secret before a wrong one", webhook(b"X-Webhook-Token: wrong"), 401),
    Case(116, "two bearers", knocking("bearer", f"Bearer {TOKEN}", f"Bearer {TOKEN}"), 401),
)

# Signatures are tried preset by preset in tests/sources/test_contract.py.
LOAD = (
    Case(120, "a source that has been taken out of the configuration", webhook(line=b"POST /webhooks/gone HTTP/1.1"), 401),
    Case(121, "beyond the source's rate", knocking("slow", f"Bearer {TOKEN}").replace(CLOSE + b"\r\n", b"") * 2
         + knocking("slow", f"Bearer {TOKEN}"), (200, 200, 429)),
    Case(122, "the sender goes away in mid-body", webhook()[:-9], 400, half_close=True),
)
# fmt: on

TABLE = (*JSON_BODIES, *EVENTS, *SECRETS, *LOAD)
