"""An excerpt shows no secret of its endpoint, however the other side writes it, and is made in no time."""

from __future__ import annotations

import json
import time
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import ApiHeader, Endpoint
from inbox.config.values import Secret
from relay.http.answer import MASK, Redactor
from relay.http.client import MAX_ANSWER
from relay.http.target import header_value, prepare
from tests.helpers.planted import spelled

IN_BASE64 = 3
"""The last of the spellings are in base64: what stands around the secret shares a digit with it."""

secrets = st.text(st.sampled_from("aZ09-_.~/+=\"'\\&%<>;: \téß€😀"), min_size=4, max_size=30)


@given(secrets, st.integers(0, 7))
def test_any_secret_is_masked_in_every_spelling(secret: str, number: int) -> None:
    told = spelled(secret)[:-IN_BASE64][number]
    assert Redactor([secret]).excerpt(f"({told})".encode()) == f"({MASK})"


@given(secrets, st.binary(max_size=5), st.binary(max_size=5))
def test_any_secret_is_masked_wherever_it_stands_in_base64(secret: str, before: bytes, after: bytes) -> None:
    told = b64encode(before + secret.encode() + after).decode()
    digits = len(secret.encode()) * 8 // 6
    shown = Redactor([secret]).excerpt(f"({told})".encode()) or ""
    assert MASK in shown
    assert len(shown.replace(MASK, "").strip("()=")) <= len(told) - digits + 1


KEYS = ("token", "token\\", 'token:"', "token:[", "token-", "token: ")
SPELLINGS = ("\\", "%", "%25", "&", "&amp;", '\\"', "\\/", "/", "+", " ", "\\\\/x", "%C3%A9", "u005c")


@pytest.mark.parametrize(
    "secret", ["\\" * 40, "\\/" * 20, "%" * 40, "&" * 40, '"\\' * 20, "/" * 40, "+ " * 20, "é" * 40]
)
def test_no_secret_and_no_text_makes_redacting_slow(secret: str) -> None:
    redactor = Redactor([secret])
    began = time.thread_time()
    for piece in (*SPELLINGS, *KEYS):
        redactor.excerpt((piece * (MAX_ANSWER // len(piece)) + "x").encode())
    assert time.thread_time() - began < 2
    told = json.dumps(secret)
    assert told[1:-1] not in (redactor.excerpt(told.encode()) or "")


@pytest.mark.parametrize("token", ["!" * 60_000, "aZ09.-_" * 500, "<'>" * 300])
def test_of_a_long_token_the_beginning_is_looked_for_and_all_is_masked(token: str) -> None:
    redactor = Redactor(["s3cr3t"]).with_secret(token)
    # A pattern of all of it would take seconds, and stop every thread.
    for told in (*spelled(token)[:-IN_BASE64], token[:200]):
        assert redactor.excerpt(f"you sent {told} here".encode()) == f"you sent {MASK} here"
    assert (redactor.excerpt(b64encode(b"Bearer " + token.encode())) or "")[len("QmVhcmVyI*") :] == MASK
    assert redactor.excerpt(b"s3cr3t") == MASK


def test_a_header_and_the_credentials_of_a_proxy_are_masked_as_they_were_sent() -> None:
    proxy = "http://me:p%40ssword@proxy.example:3128"
    for secret in ("s3cr3t", "p@ss word/é", "100 %"):
        endpoint = Endpoint(auth=ApiHeader("X-Api-Key", Secret(secret)), proxy=proxy, allow_private=True)
        redactor = prepare(endpoint, "https://crm.example", "destinations.crm").redactor
        sent = header_value(secret)
        for told in spelled(sent)[:-IN_BASE64]:
            assert redactor.excerpt(f"({told})".encode()) == f"({MASK})"
        assert redactor.excerpt(b64encode(sent.encode())) == MASK
        told = redactor.excerpt(b"Basic " + b64encode(b"me:p@ssword")) or ""
        assert b64encode(b"p@ssword").decode().rstrip("=")[1:-2] not in told
        assert told.count(MASK) == 1


def test_a_text_without_a_secret_is_left_alone() -> None:
    text = "a/b c%20d &amp; e+f \\u0041 QUJDRA== café"
    assert Redactor(["s3cr3t/+="]).excerpt(text.encode()) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password=hunter2&x=1", "password=***&x=1"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ('{"secrets": ["a1", "b2"], "y": 2}', '{"secrets": ***, "y": 2}'),
        ('{"clientSecret" : "a1", "y": 2}', '{"clientSecret" : ***, "y": 2}'),
        ('{"message": "{\\"api_key\\": \\"a1\\"}"}', '{"message": "{\\"api_key\\": ***}"}'),
        ('{"token": "cut shor', '{"token": ***'),
        ("a passwordless login", "a passwordless login"),
        ("mine is p%40ss, cEBzcw==", "mine is ***, ***"),
    ],
)
def test_values_whose_key_says_they_are_secret_are_masked(text: str, shown: str) -> None:
    assert Redactor(["p@ss"]).excerpt(text.encode()) == shown
