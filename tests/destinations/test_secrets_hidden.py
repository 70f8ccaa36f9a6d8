"""Excerpts and error messages show no secret, in any spelling, and are made fast."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.model import ApiHeader, Endpoint
from inbox.config.values import Secret
from inbox.db import engine
from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from inbox.sources import build_preset
from inbox.sources.credentials import build_verifier
from relay import destinations
from relay.daemon.generation import alert_client
from relay.http.client import MAX_ANSWER
from relay.http.response import MASK, Redactor
from relay.http.target import header_value, prepare
from tests.helpers.planted import Planted, spell

IN_BASE64 = 3
"""Number of spellings in base64, the last ones: they share a digit with the surrounding text."""

secrets = st.text(st.sampled_from("aZ09-_.~/+=\"'\\&%<>;: \téß€😀"), min_size=4, max_size=30)


@given(secrets, st.integers(0, 7))
def test_any_secret_is_masked_in_every_spelling(secret: str, number: int) -> None:
    told = spell(secret)[:-IN_BASE64][number]
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
    # A pattern of the whole token would block all threads for seconds.
    for told in (*spell(token)[:-IN_BASE64], token[:200]):
        assert redactor.excerpt(f"you sent {told} here".encode()) == f"you sent {MASK} here"
    assert (redactor.excerpt(b64encode(b"Bearer " + token.encode())) or "")[len("QmVhcmVyI*") :] == MASK
    assert redactor.excerpt(b"s3cr3t") == MASK


def test_a_header_and_the_credentials_of_a_proxy_are_masked_as_they_were_sent() -> None:
    proxy = "http://me:p%40ssword@proxy.example:3128"
    for secret in ("s3cr3t", "p@ss word/é", "100 %"):
        endpoint = Endpoint(auth=ApiHeader("X-Api-Key", Secret(secret)), proxy=proxy, allow_private=True)
        redactor = prepare(endpoint, "https://crm.example", "destinations.crm").redactor
        sent = header_value(secret)
        for told in spell(sent)[:-IN_BASE64]:
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


# --- error messages of the configuration


SECRET = Planted()
HIDDEN = SECRET.plain("mistaken")

SOURCE = '[sources.s]\npreset = "trivore"\nauth = { kind = "none" }\n'
HOOK = '[destinations.d]\nkind = "forward"\nurl = "https://crm.example"\n'
ROUTE = '[routes.r]\nsource = "s"\ndestination = "d"\n'


def start(text: str) -> None:
    """Run everything that reads the configuration before the first request or call."""
    config = parse_config(text)
    for source in config.sources.values():
        build_verifier(source, build_preset(source))
    destinations.build(config)
    alert_client(config)
    engine.parse_url(config.database.url)


def mistake_in(read: Callable[[str], object], text: str) -> str:
    """Return the error message, which must show no secret."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert SECRET.leaks({"the error": str(caught.value)}) == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (f'pasword = "{HIDDEN}"', "pasword"),
        (f'auth = {{ token = "{HIDDEN}" }}', "kind"),
        (f'auth = {{ kind = "bearer", token = ["{HIDDEN}"] }}', "token"),
        (f'auth = {{ kind = "bearer", token = {{ valeu = "{HIDDEN}" }} }}', "token"),
        (f'auth = {{ kind = "bearer", token = {{ value = "{HIDDEN}", until = 1 }} }}', "until"),
        (f'auth = {{ kind = "bearer", token = {{ value = "{HIDDEN}", not_after = 2027-01-01 }} }}', "2027-01-01"),
        (f'auth = {{ kind = "header", name = "a b", value = "{HIDDEN}" }}', "a b"),
        (f'headers = {{ "a b" = "{HIDDEN}" }}', "a b"),
        (f'signing_secret = "whsec_{HIDDEN}!"', "signing_secret"),
        (f'proxy = "socks5://me:{HIDDEN}@proxy"', "proxy"),
        (f'proxy = "http://me:{HIDDEN}@[proxy"', "proxy"),
        (f'proxy = "http://me:{HIDDEN}@proxy:port"', "proxy"),
        (f'proxy = "http://me:{HIDDEN}\u2100@proxy"', "proxy"),
        (f'ca_file = "/nowhere.pem"\nauth = {{ kind = "bearer", token = "{HIDDEN}" }}', "/nowhere.pem"),
        (f'auth = {{ kind = "bearer", token = "{HIDDEN}', "TOML"),
    ],
)
def test_a_mistake_in_a_destination_does_not_show_its_secret(mistake: str, told: str) -> None:
    assert told in mistake_in(start, SOURCE + HOOK + mistake + "\n" + ROUTE)


@pytest.mark.parametrize("place", ["destinations.d", "alerts"])
def test_a_url_that_can_not_be_used_is_not_shown(place: str) -> None:
    good = HOOK if place == "alerts" else HOOK.replace("https://crm.example", "URL")
    text = good + ('[alerts]\nurl = "URL"\n' if place == "alerts" else "")
    for url in (
        "http://crm.example/",
        "ftp://crm.example/",
        "crm.example/",
        "https://crm.example:port/",
        "https://[crm/",
    ):
        assert place in mistake_in(start, SOURCE + text.replace("URL", url + HIDDEN) + ROUTE)
    assert place in mistake_in(start, SOURCE + text.replace("URL", f"https://me:{HIDDEN}@crm.example/") + ROUTE)


@pytest.mark.parametrize("auth", ["secrets = {}", "secrets = [[{}]]", "secrets = [{{ valeu = {} }}]", "secret = [{}]"])
def test_a_mistake_in_a_source_does_not_show_its_secret(auth: str) -> None:
    mistake = auth.format(f'"{HIDDEN}"')
    assert "secret" in mistake_in(start, f'[sources.s]\npreset = "trivore"\nauth = {{ kind = "bearer", {mistake} }}\n')


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://h/x?password={HIDDEN}",
        f"me:{HIDDEN}@host",
        f"sqlite:///:memory:?password={HIDDEN}",
        f"sqlite://me:{HIDDEN}@h",
        f"postgresql://me:{HIDDEN}@h:port/x",
        f"postgresql:/me:{HIDDEN}@h/x",
        f"{HIDDEN}",
        f"postgresql://me:p@{HIDDEN}@h/x",
        f"postgresql://me:p@{HIDDEN}/x@h/x",
        f"postgresql://h/x?password={HIDDEN}&pooler=session",
    ],
)
def test_a_database_url_that_can_not_be_used_is_not_shown(url: str) -> None:
    assert "[database] url: " in mistake_in(engine.parse_url, url)


def test_a_url_with_a_password_anywhere_is_read_and_shows_it_nowhere() -> None:
    for url, user, password, database in (
        (f"postgresql://me@h/x?password={HIDDEN}&sslmode=require", "me", HIDDEN, "x"),
        (f"postgresql://me@server:{HIDDEN}@h/x", "me@server", HIDDEN, "x"),
        (f"postgresql://me:{HIDDEN}?%40@h/x?options=-c%20a%3Db@c", "me", f"{HIDDEN}?@", "x"),
        (f"postgresql://me:/{HIDDEN}%2F@h/x%40y", "me", f"/{HIDDEN}/", "x@y"),
    ):
        parsed = engine.parse_url(url)
        assert (parsed.username, parsed.password, parsed.host, parsed.database) == (user, password, "h", database)
        made = engine.connect(url, application="tests")
        assert SECRET.leaks({"an engine": repr(made), "its url": str(made.url)}) == []
    parsed = engine.parse_url(f"postgresql://me:{HIDDEN}@h/x?sslkey=k.pem&sslpassword={HIDDEN}")
    assert engine.format_url(parsed) == "postgresql+psycopg://me:***@h/x?sslkey=k.pem"
