"""Parsers of what strangers write: whatever it is, they read it as its format says, or raise their one error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.errors import ConfigError, NotAuthenticated, RequestError, Unreadable, UnusableAnswer
from inbox.events import strict_json, timestamps
from inbox.http import head
from inbox.loader.load import parse_config
from relay.http import client as http_client
from tests.sources import test_secevent as secevent
from tests.sources.presenting import NOW

JSON_MARKS = '{}[]",:\\u019dDeE+-.aNIntrlfs \n\x00\ufeff\ud7ff'
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())


class Parser(NamedTuple):
    """A parser with inputs that come near to its format, and with what holds of everything that it reads."""

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], None]
    refusal: type[Exception]


def read_time(text: str) -> None:
    assert isinstance(timestamps.parse_rfc3339(text), int)


def read_json(body: bytes) -> None:
    json.dumps(strict_json.parse(body), allow_nan=False, ensure_ascii=False).encode()


HEADS = st.tuples(
    st.sampled_from(["1.1", "1.1", "1.0", "0.9", "2.0"]),
    st.sampled_from([b"/", b"/a?b", b"http://a/"]) | st.binary(max_size=30),
    st.lists(
        st.sampled_from([(b"host", b"a"), (b"expect", b"100-continue"), (b"transfer-encoding", b"chunked")])
        | st.tuples(
            st.sampled_from([b"host", b"content-type", b"transfer-encoding", b"expect", b"x-a"]),
            st.sampled_from([b"", b"a", b"gzip, chunked"]) | st.binary(max_size=20),
        ),
        max_size=5,
    ),
)


def read_head(drawn: tuple[str, bytes, list[tuple[bytes, bytes]]]) -> None:
    version, target, fields = drawn
    head.check(version, target, fields)
    names = [name for name, _ in fields]
    assert version == "1.0" or (version == "1.1" and names.count(b"host") == 1)
    assert all(names.count(name) <= 1 for name in (b"host", b"content-type", b"transfer-encoding", b"expect"))
    assert dict(fields).get(b"transfer-encoding", b"chunked").lower() == b"chunked"
    assert target.startswith((b"/", b"http"))


def read_token(body: bytes) -> None:
    value, lasts = http_client.read_token(body)
    assert re.fullmatch(r"[!-~]+", value)
    assert 0 <= lasts <= 10**9


SIGNALS = secevent.make_set_verifier(secevent.ALL)


def read_security_event_token(body: bytes) -> None:
    SIGNALS.verify(secevent.make_set_request(body), NOW)
    raise AssertionError("nobody has signed it")


TOKEN_HEADERS = st.fixed_dictionaries(
    {"kid": st.text(max_size=20), "alg": st.sampled_from(["RS256", "ES256", "EdDSA", 5, None])}
).map(secevent.segment)
KEY_MEMBERS = st.dictionaries(
    st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "x", "y", "d", "k"]),
    st.none() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=2)
    | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "RS256", "sig", "AQAB"]),
)  # fmt: skip
JWK = secevent.jwk(secevent.RSA)


def read_key(members: dict[str, object]) -> None:
    secevent.make_set_verifier(secevent.make_document({**JWK, **members}))


def read_config(text: str) -> None:
    parse_config(text)


PARSERS = {
    "times": Parser(st.text() | st.text(alphabet="0123456789-:TZtz+. ٣", max_size=40), read_time, ValueError),
    "JSON": Parser(st.binary() | st.text(alphabet=JSON_MARKS).map(str.encode), read_json, Unreadable),
    "heads": Parser(HEADS, read_head, RequestError),
    "tokens": Parser(
        st.binary(max_size=200)
        | st.dictionaries(st.sampled_from(["access_token", "token_type", "expires_in", "scope"]), SIMPLE).map(
            lambda made: json.dumps(made).encode()
        ),
        read_token,
        UnusableAnswer,
    ),
    "security event tokens": Parser(
        st.tuples(st.binary(max_size=40) | TOKEN_HEADERS, st.binary(max_size=40), st.binary(max_size=40)).map(b".".join)
        | st.lists(st.binary(max_size=40), max_size=5).map(b".".join),
        read_security_event_token,
        NotAuthenticated,
    ),
    "keys": Parser(KEY_MEMBERS, read_key, ConfigError),
    "configurations": Parser(st.text(alphabet="[]{}=\"'.,#\n\\ ab1-"), read_config, ConfigError),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_any_input_is_read_as_its_format_says_or_refused(name: str, data: st.DataObject) -> None:
    parser = PARSERS[name]
    drawn = data.draw(parser.inputs)
    try:
        parser.read(drawn)
    except parser.refusal as error:
        str(getattr(error, "detail", error)).encode()  # an answer or a log repeats it, and it must be writable
