from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sources import BasicAuth, BearerAuth, HeaderAuth, InboundAuth, NoAuth, Source, UrlTokenAuth
from inbox.config.values import Network, Secret
from inbox.errors import ConfigError
from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.credentials import Verifier, pad_work, verifier_of
from tests.sources.presenting import find_refusal

NOW = datetime(2027, 1, 15, tzinfo=UTC)
DAY = timedelta(days=1)


def kinds_of(secret: str) -> dict[str, InboundAuth]:
    """Return every kind of authentication with this secret."""
    secrets = [Secret(secret)]
    return {
        "basic": BasicAuth(user="demo", secrets=secrets),
        "bearer": BearerAuth(secrets=secrets),
        "header": HeaderAuth(name="X-Webhook-Token", secrets=secrets),
        "url_token": UrlTokenAuth(secrets=secrets),
    }


KINDS = kinds_of("s3cret")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def request(kind: str, secret: str) -> RawRequest:
    """Return a request that presents `secret` by `kind`, as a WSGI server passes it on: header bytes as Latin-1."""
    as_header = secret.encode().decode("latin-1")
    headers = {
        "basic": {"authorization": basic("demo", secret)},
        "bearer": {"authorization": f"Bearer {as_header}"},
        "header": {"x-webhook-token": as_header},
    }.get(kind, {})
    return RawRequest("trivore", headers, b"{}", NOW, url_token=secret if kind == "url_token" else None)


def make_auth(auth: InboundAuth, environment: Mapping[str, str] | None = None) -> Verifier:
    source = Source(name="trivore", preset="trivore", auth=auth)
    return verifier_of(source, PRESETS["trivore"], environment or {})


def is_refused(verifier: Verifier, raw: RawRequest, now: datetime = NOW) -> bool:
    return find_refusal(verifier, raw, now) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_secret_is_let_in_and_any_other_is_not(kind: str) -> None:
    asked = make_auth(KINDS[kind])
    assert not is_refused(asked, request(kind, "s3cret"))
    assert is_refused(asked, RawRequest("trivore", {}, b"{}", NOW)), "nothing is shown"
    assert all(is_refused(asked, request(elsewhere, "s3cret")) for elsewhere in KINDS if elsewhere != kind)
    for wrong in ("", "s3cre", "s3cret2", "S3CRET", "x", "s3cret, s3cret", "s3crét"):
        assert is_refused(asked, request(kind, wrong))


@pytest.mark.parametrize("kind", KINDS)
@given(secret=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_secret_may_have_any_characters(kind: str, secret: str) -> None:
    if kind == "bearer":
        secret = secret.strip(" ") or "x"  # a header value cannot end with spaces
    assert not is_refused(make_auth(kinds_of("env:S")[kind], {"S": secret}), request(kind, secret))


def test_a_source_without_authentication_accepts_any_request() -> None:
    assert not is_refused(make_auth(NoAuth()), RawRequest("trivore", {}, b"", NOW))


def test_each_of_several_secrets_let_in_within_its_time_only() -> None:
    auth = BearerAuth(
        secrets=[Secret("old", not_after=NOW), Secret("present"), Secret("next", not_before=NOW + DAY), Secret("last")]
    )
    several = make_auth(auth)
    let_in = {
        moment: [s for s in ("old", "present", "next", "last") if not is_refused(several, request("bearer", s), moment)]
        for moment in (NOW - DAY, NOW, NOW + DAY)
    }
    assert let_in == {
        NOW - DAY: ["old", "present", "last"],
        NOW: ["present", "last"],
        NOW + DAY: ["present", "next", "last"],
    }


def test_the_scheme_is_compared_without_regard_to_case() -> None:
    for value in ("bearer s3cret", "BEARER  s3cret"):
        assert not is_refused(make_auth(KINDS["bearer"]), RawRequest("s", {"authorization": value}, b"", NOW))
    for value in ("s3cret", "Bearers3cret", "Token s3cret", "Bearer", "Bearer\ts3cret"):
        assert is_refused(make_auth(KINDS["bearer"]), RawRequest("s", {"authorization": value}, b"", NOW))


def test_a_bearer_token_may_stand_in_the_query_once() -> None:
    asked = make_auth(KINDS["bearer"])
    for query, let_in in (
        ("access_token=s3cret", True),
        ("a=b&access_token=s3%63ret", True),
        ("access_token=s3cret&access_token=x", False),
        ("token=s3cret", False),
    ):
        assert is_refused(asked, RawRequest("trivore", {}, b"{}", NOW, query=query)) != let_in, query


@pytest.mark.parametrize(
    "junk",
    [
        *("Basic", "Basic !!!!", "Basic ZGVtbzpzM2NyZXQ", "Basic ZGVt bzpzM2NyZXQ=", "Basic é", "Basic =="),
        basic("dem", "o:s3cret"),  # another user
    ],
)
def test_credentials_that_are_no_base64_or_of_another_user_are_refused(junk: str) -> None:
    assert is_refused(make_auth(KINDS["basic"]), RawRequest("s", {"authorization": junk}, b"", NOW))


@pytest.mark.parametrize("kind", [*KINDS, "unknown"])
@given(
    value=st.text() | st.binary().map(lambda raw: raw.decode("latin-1")),
    scheme=st.sampled_from(["", "Basic ", "Bearer "]),
)
def test_whatever_the_headers_hold_only_a_refusal_is_raised(kind: str, value: str, scheme: str) -> None:
    asked = pad_work(map(make_auth, KINDS.values())) if kind == "unknown" else make_auth(KINDS[kind])
    raw = RawRequest("s", {"authorization": scheme + value, "x-webhook-token": value}, b"", NOW, url_token=value)
    assert is_refused(asked, raw)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_source_and_one_of_another_kind_refuse_a_secret_although_they_try_it(kind: str) -> None:
    verifiers = {name: make_auth(auth) for name, auth in KINDS.items()}
    unknown = pad_work(verifiers.values())
    for name, asked in verifiers.items():
        assert is_refused(asked, request(kind, "s3cret")) == (name != kind)
    assert is_refused(unknown, request(kind, "s3cret"))
    assert is_refused(unknown, request(kind, ""))


def test_a_secret_that_is_not_there_stops_the_start_and_names_the_source() -> None:
    source = Source(name="trivore", preset="trivore", auth=BearerAuth(secrets=[Secret("env:TOKEN")]))
    with pytest.raises(ConfigError, match=r"\[sources.trivore\] auth: the environment variable TOKEN is not set"):
        verifier_of(source, PRESETS["trivore"], {})
    assert not is_refused(verifier_of(source, PRESETS["trivore"], {"TOKEN": "s3cret"}), request("bearer", "s3cret"))


# --- the sender's address, as far as it needs no connection: `tests/process/test_receiver.py` has those


RIGHT = RawRequest("acme", {"authorization": "Bearer s3cret"}, b"{}", NOW)


def refusal(networks: tuple[str, ...], raw: RawRequest) -> str | None:
    source = Source(name="acme", preset="trivore", auth=KINDS["bearer"], allow_from=[*map(Network.parse, networks)])
    return find_refusal(verifier_of(source, PRESETS["trivore"], {}), raw)


def is_let_in(networks: tuple[str, ...], address: str | None) -> bool:
    return refusal(networks, msgspec.structs.replace(RIGHT, remote_address=address)) is None


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.0.2.7", ("192.0.2.7", "::ffff:192.0.2.7", "::FFFF:c000:0207"), ("192.0.2.8", "::192.0.2.7")),
        ("192.0.2.0/24", ("192.0.2.0", "192.0.2.255"), ("192.0.3.0", "192.0.1.255")),
        ("2001:db8::/32", ("2001:db8::1", "2001:DB8:0::1"), ("2001:db9::", "::", "192.0.2.7")),
        ("::ffff:192.0.2.0/120", ("192.0.2.9", "::ffff:192.0.2.9"), ("192.0.3.9",)),
        ("::1", ("::1", "0:0:0:0:0:0:0:1"), ("127.0.0.1", "::ffff:127.0.0.1")),
        ("0.0.0.0/0", ("203.0.113.1", "::ffff:203.0.113.1"), ("2001:db8::1",)),
        ("fe80::/10", ("fe80::1%eth0",), ("fec0::1",)),
    ],
)
def test_an_address_is_let_in_if_a_network_has_it(
    network: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    assert [address for address in inside if not is_let_in((network,), address)] == []
    assert [address for address in outside if is_let_in((network,), address)] == []


@pytest.mark.parametrize(
    "nothing", [None, "", "unknown", "192.0.2.7:80", "192.0.2.07", "192.0.2.7 ", "2001:db8::/32", "*", "\x00"]
)
def test_a_request_without_a_valid_address_is_refused(nothing: str | None) -> None:
    assert not is_let_in(("0.0.0.0/0", "::/0"), nothing)


def test_the_operator_sees_the_address_and_an_allowed_address_still_needs_the_secret() -> None:
    elsewhere = msgspec.structs.replace(RIGHT, remote_address="203.0.113.9")
    assert refusal(("192.0.2.0/24",), elsewhere) == "it comes from 203.0.113.9, which allow_from does not have"
    assert "an address that is not known" in (refusal(("192.0.2.0/24",), RIGHT) or "")
    stranger = msgspec.structs.replace(RIGHT, remote_address="192.0.2.1", headers={})
    assert refusal(("192.0.2.0/24",), stranger) == "it has no secret"
