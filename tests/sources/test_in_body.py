"""Proofs in the body (Adyen, Mailgun, Microsoft Graph), and secrets elsewhere in a request."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sources import BasicAuth, BearerAuth, HeaderAuth, InboundAuth, NoAuth, Source, UrlTokenAuth
from inbox.config.values import Duration, Network, Secret
from inbox.errors import ConfigError, InvalidEvent
from inbox.events.event import Identity, RawRequest
from inbox.sources import PRESETS
from inbox.sources.base import Sample
from inbox.sources.credentials import Verifier, build_verifier, pad_work
from inbox.sources.presets.msgraph import greet
from inbox.sources.signing import MOST_PARTS
from tests.helpers.webhooks import mistake
from tests.sources.presenting import (
    NOW,
    find_refusal,
    make_request,
    make_secret,
    make_source,
    make_verifier,
    read,
    sign_sample,
)

JSON = {"Content-Type": "application/json"}
ADYEN_KEY = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
ITEM: dict[str, Any] = {  # from the tests of Adyen's own library, test/UtilTest.py
    "pspReference": "7914073381342284",
    "merchantReference": "TestPayment-1407325143704",
    "merchantAccountCode": "TestMerchant",
    "amount": {"currency": "EUR", "value": 1130},
    "eventCode": "AUTHORISATION",
    "success": "true",
    "eventDate": "2019-05-06T17:15:34.121+02:00",
    "operations": ["CANCEL", "CAPTURE", "REFUND"],
    "paymentMethod": "visa",
    "additionalData": {"hmacSignature": "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="},
}
MAILGUN_KEY = "key-of-webhooks"
TOKEN = "a8ce0edb2dd8301dee6c2405235584e45aa91d1e9f979f3de0"
MAILGUN: dict[str, Any] = {  # its members as in Mailgun's documentation; the signature by OpenSSL
    "signature": {
        "token": TOKEN,
        "timestamp": "1529006854",
        "signature": "701f8f60a0b5123d1a4ee6976a5a1371a9aa591c135ec7d0bc6bf02469f94764",
    },
    "event-data": {
        "event": "failed",
        "severity": "permanent",
        "timestamp": 1529006854.329574,
        "id": "DACSsAdVSeGpLid7TN03WA",
        "message": {"headers": {"message-id": "20130503182626.18666.16540@example.com"}},
    },
}
MAILED = datetime.fromtimestamp(1_529_006_854, UTC)


def notify_adyen(*items: object) -> RawRequest:
    listed = [{"NotificationRequestItem": item} for item in items]
    return make_request("adyen", json.dumps({"live": "false", "notificationItems": listed}).encode(), JSON)


def send_mailgun(at: datetime = MAILED, /, **changes: object) -> RawRequest:
    proof = {**MAILGUN["signature"], **changes}
    return make_request("mailgun", json.dumps({**MAILGUN, "signature": proof}).encode(), JSON, at)


def why(raw: RawRequest, *secrets: Secret) -> str | None:
    return find_refusal(make_verifier(raw.source, *secrets), raw)


def identities(raw: RawRequest) -> tuple[Identity, ...]:
    return PRESETS[raw.source].read(raw, None)


# --- Adyen


def test_adyens_own_example_is_let_in_and_each_signed_field_counts() -> None:
    assert why(notify_adyen(ITEM), Secret(ADYEN_KEY)) is None
    assert why(notify_adyen(ITEM), Secret("00" * 32)) is not None
    texts = ("pspReference", "merchantReference", "merchantAccountCode", "eventCode")
    amounts: list[object] = [{"currency": "USD", "value": 1130}, {"currency": "EUR", "value": 11300}, {}, None]
    changes: list[dict[str, Any]] = [
        *[{name: f"{ITEM[name]}x"} for name in texts],
        *({"amount": amount} for amount in amounts),
        {"originalReference": "1"},
        {"success": "false"},
    ]
    for change in changes:
        assert why(notify_adyen({**ITEM, **change}), Secret(ADYEN_KEY)) is not None, change


def test_a_field_that_adyen_does_not_sign_is_no_part_of_the_key() -> None:
    """An attacker could resend a notification with another time; it is still a duplicate."""
    again = {**ITEM, "eventDate": "2020-01-01T00:00:00Z", "reason": "x", "additionalData": {**ITEM["additionalData"]}}
    assert why(notify_adyen(again), Secret(ADYEN_KEY)) is None
    ((first,), (second,)) = (read(notify_adyen(item)) for item in (ITEM, again))
    assert first.dedup_key == second.dedup_key


def test_no_field_of_adyens_can_be_moved_into_its_neighbour() -> None:
    """Adyen escapes no colon: `a:b` and `c` sign as `a` and `b:c` do. Only the merchant's reference may have one."""
    colons = {**ITEM, "merchantReference": "order:1::2", "additionalData": {}}
    body = PRESETS["adyen"].signer(Sample(notify_adyen(colons).body), ADYEN_KEY, NOW).body  # type: ignore[misc]
    (entry,) = json.loads(body)["notificationItems"]
    signed = entry["NotificationRequestItem"]
    assert why(notify_adyen(signed), Secret(ADYEN_KEY)) is None
    texts = ["7914073381342284", "", "TestMerchant", "order", "1", "", "2", "1130", "EUR", "AUTHORISATION", "true"]
    names = ("pspReference", "originalReference", "merchantAccountCode", "merchantReference")
    for first in range(1, 5):  # number of fields moved into the first name
        moved = {**signed, "pspReference": ":".join(texts[:first])}
        rest = [*texts[first : first + 2], ":".join(texts[first + 2 : 7])]
        moved |= dict(zip(names[1:], rest, strict=True))
        assert (why(notify_adyen(moved), Secret(ADYEN_KEY)) is None) == (first == 1), moved
    later = {**signed, "merchantReference": "order", "eventCode": "1130:EUR:AUTHORISATION"}
    later["amount"] = {"value": "1:", "currency": "2"}
    assert why(notify_adyen(later), Secret(ADYEN_KEY)) is not None


def test_one_notification_that_is_not_signed_rejects_them_all() -> None:
    forged = {**ITEM, "pspReference": "1"}
    for items in ((ITEM, forged), (forged, ITEM), (ITEM, {}), (ITEM, None)):
        assert why(notify_adyen(*items), Secret(ADYEN_KEY)) is not None
    assert why(notify_adyen(*[ITEM] * MOST_PARTS), Secret(ADYEN_KEY)) is None
    assert "more than 100 parts" in (why(notify_adyen(*[ITEM] * (MOST_PARTS + 1)), Secret(ADYEN_KEY)) or "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("payment", "7914073381342284", "AUTHORISATION", "create")),
        ({"success": "false"}, ("payment", "7914073381342284", "AUTHORISATION.failed", "update")),
        ({"success": False}, ("payment", "7914073381342284", "AUTHORISATION.failed", "update")),
        (
            {"eventCode": "REFUND", "originalReference": "791", "pspReference": "2"},
            ("payment", "791", "REFUND", "update"),
        ),
        (
            {"eventCode": "REPORT_AVAILABLE", "pspReference": "settlement.csv"},
            ("report", "settlement.csv", "REPORT_AVAILABLE", "create"),
        ),
    ],
)
def test_a_notification_of_adyen(change: dict[str, object], expected: tuple[str, ...]) -> None:
    (identity,) = identities(notify_adyen({**ITEM, **change}))
    assert (identity.entity_type, identity.entity_id, identity.event_type, identity.action) == expected
    assert identity.occurred_ns == 1_557_155_734_121_000_000


def test_several_notifications_of_adyen_are_stored_each_by_itself() -> None:
    events = identities(notify_adyen(ITEM, {**ITEM, "eventCode": "CAPTURE"}))
    assert [each.event_type for each in events] == ["AUTHORISATION", "CAPTURE"]
    assert [len(json.loads(each.part or b"")["notificationItems"]) for each in events] == [1, 1]
    for broken in ({**ITEM, "eventCode": ""}, {**ITEM, "pspReference": "x" * 256}, "x"):
        with pytest.raises(InvalidEvent):
            identities(notify_adyen(ITEM, broken))


# --- Mailgun


def test_mailguns_time_and_token_are_signed_and_the_event_is_not() -> None:
    assert why(send_mailgun(), Secret(MAILGUN_KEY)) is None
    assert why(send_mailgun(timestamp=1_529_006_854), Secret(MAILGUN_KEY)) is None, (
        "a number, as its documentation has it"
    )
    own: dict[str, Any] = {"signature": "0" * 64, "parent-signature": MAILGUN["signature"]["signature"]}
    assert why(send_mailgun(**own), Secret(MAILGUN_KEY)) is None, "a subaccount's is proven by the key of its parent"
    for change in ({"token": TOKEN[:-1]}, {"timestamp": "1529006855"}, {"signature": "0" * 64}, {"token": ""}):
        assert why(send_mailgun(**change), Secret(MAILGUN_KEY)) is not None, change
    other = json.loads(send_mailgun().body)
    other["event-data"]["id"] = "forged"
    forged = msgspec.structs.replace(send_mailgun(), body=json.dumps(other).encode())
    assert why(forged, Secret(MAILGUN_KEY)) is None, "as the documentation of the preset says"
    ((first,), (second,)) = (read(each) for each in (send_mailgun(), forged))
    assert first.dedup_key == second.dedup_key, "so the token is the key: the forged one is a duplicate"


def test_a_signature_of_mailgun_counts_as_long_as_its_retries_last_unless_a_source_shortens_that_time() -> None:
    for hours, let_in in ((-9, True), (-9.01, False), (9, True), (9.01, False)):
        raw = send_mailgun(MAILED + timedelta(hours=hours))
        assert (why(raw, Secret(MAILGUN_KEY)) is None) == let_in
    source = msgspec.structs.replace(make_source("mailgun", Secret(MAILGUN_KEY)), tolerance=Duration(60))
    verifier = build_verifier(source, PRESETS["mailgun"], {})
    assert find_refusal(verifier, send_mailgun(MAILED + timedelta(seconds=60))) is None
    assert "61 s before" in (find_refusal(verifier, send_mailgun(MAILED + timedelta(seconds=61))) or "")


def test_an_event_of_mailgun() -> None:
    (identity,) = identities(send_mailgun())
    assert (identity.entity_type, identity.entity_id) == ("message", "20130503182626.18666.16540@example.com")
    assert (identity.event_type, identity.event_id) == ("failed.permanent", "DACSsAdVSeGpLid7TN03WA")
    assert identity.key_parts == (TOKEN,)
    (by_id,) = PRESETS["mailgun"].read(send_mailgun(), ["id"])
    assert by_id.key_parts == ("DACSsAdVSeGpLid7TN03WA",)


# --- both


NO_PLACE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff",
    "another JSON": b"{}",
    "nested": b"[" * 100_000,
    "an empty list": b'{"notificationItems": [], "signature": {}}',
    "other types": b'{"notificationItems": [{"NotificationRequestItem": 1}], "signature": []}',
    "a number of 5,000 digits": b'{"notificationItems": [{"NotificationRequestItem": {"amount": {"value": %b}}}],'
    b' "signature": {"token": "x", "timestamp": %b}}' % (b"1" * 5_000, b"1" * 5_000),
}


@pytest.mark.parametrize("body", NO_PLACE.values(), ids=NO_PLACE)
@pytest.mark.parametrize("name", ["adyen", "mailgun"])
def test_a_body_without_a_place_for_the_signature_proves_nothing(name: str, body: bytes) -> None:
    secret = make_secret(PRESETS[name])
    assert "is missing" in (why(make_request(name, body, JSON), Secret(secret)) or "")
    signer: Callable[[Sample, str, datetime], Sample] | None = PRESETS[name].signer
    assert signer is not None
    with pytest.raises(ConfigError):
        signer(Sample(body), secret, NOW)


def test_a_key_that_is_not_hex_is_a_mistake_that_does_not_show_it() -> None:
    with pytest.raises(ConfigError, match="a secret is not hex") as caught:
        make_verifier("adyen", Secret("not-hex"))
    assert "not-hex" not in str(caught.value)


@pytest.mark.parametrize("name", ["adyen", "mailgun"])
def test_signing_anew_changes_nothing_else(name: str) -> None:
    first, second = (json.loads(sign_sample(name, make_secret(PRESETS[name], n)).body) for n in (0, 1))
    assert first != second
    for each in (first, second):
        each.get("signature", {}).pop("signature", None)
        for item in each.get("notificationItems", ()):
            item["NotificationRequestItem"].pop("additionalData")
    assert first == second


# --- Microsoft Graph


GRAPH = Source(name="g", preset="msgraph", auth=UrlTokenAuth(secrets=[Secret("token")]))


def graph_verifier(*secrets: Secret) -> Verifier:
    auth = UrlTokenAuth(secrets=[Secret("token")])
    return build_verifier(Source(name="g", preset="msgraph", secrets=list(secrets), auth=auth), PRESETS["msgraph"], {})


def notify_graph(*states: object, token: str | None = "token", query: str = "") -> RawRequest:
    body = json.dumps({"value": [{"changeType": "updated", "clientState": state} for state in states]}).encode()
    raw = make_request("g", body, {"Content-Type": "application/json"})
    return msgspec.structs.replace(raw, url_token=token, query=query)


def test_each_notification_has_to_have_a_client_state_that_is_valid_now() -> None:
    rotated = graph_verifier(Secret("old", not_after=NOW + timedelta(seconds=1)), Secret("new"))
    for states in (("new",), ("old",), ("old", "new", "new"), ("new",) * 500):
        assert find_refusal(rotated, notify_graph(*states)) is None
    assert find_refusal(rotated, notify_graph("old", "new"), NOW + timedelta(seconds=1)) is not None
    for wrong in ((), ("",), ("other",), ("new", "other"), ("new", ""), (None,), (1,), ("new", None), ("New",)):
        assert find_refusal(rotated, notify_graph(*wrong)) is not None, wrong
    assert find_refusal(rotated, notify_graph("new", token="nekot")) is not None
    assert find_refusal(rotated, notify_graph("new", token=None)) is not None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"value": {}}', b'{"value": [1]}', b"\xff", b"[" * 100_000, b'{"value": []}']
)
def test_a_body_without_notifications_proves_nothing(body: bytes) -> None:
    raw = msgspec.structs.replace(notify_graph("s"), body=body)
    assert find_refusal(graph_verifier(Secret("s")), raw) == "no clientState is there"


def test_a_validation_needs_the_token_of_the_url_and_gets_its_own_back_whatever_else_it_holds() -> None:
    text = "Validation: Testing client application reachability; <b>é</b> + %"
    asks = notify_graph("wrong", query=f"validationToken={quote(text)}")
    assert find_refusal(graph_verifier(Secret("s")), asks) is None
    assert find_refusal(graph_verifier(Secret("s")), msgspec.structs.replace(asks, url_token="nekot")) is not None
    answer = PRESETS["msgraph"].handshake_response(asks, lambda _: b"")
    assert answer is not None
    assert (answer.status, answer.body.decode(), answer.content_type) == (200, text, "text/plain; charset=utf-8")


@given(
    st.text(max_size=40)
    | st.sampled_from(["validationToken=", "validationToken=a&validationToken=b", "a=validationToken=1"])
)
def test_a_request_that_needs_no_client_state_is_never_read_as_notifications(query: str) -> None:
    raw = notify_graph("wrong", query=query)
    if find_refusal(graph_verifier(Secret("s")), raw) is None:
        with contextlib.suppress(InvalidEvent):  # such as a repeated token
            assert greet(raw, lambda _: b"") is not None


def test_a_second_change_is_no_duplicate_of_the_first_though_its_notification_has_the_same_bytes() -> None:
    """Without an id it says only that a user has changed; a reader between the two changes would miss the second."""
    first = notify_graph("s")
    later = msgspec.structs.replace(first, received_at=NOW + timedelta(milliseconds=1))
    keys = [each.dedup_key for raw in (first, first, later) for each in read(raw, GRAPH)]
    assert keys[0] == keys[1] != keys[2], "the same request, as it is readmitted, and another"
    assert len({each.dedup_key for each in read(notify_graph("s", "s", "t"), GRAPH)}) == 2
    with_id = [json.dumps({"value": [{"changeType": "updated", "id": each}]}).encode() for each in "aab"]
    keys = [
        read(msgspec.structs.replace(raw, body=body), GRAPH)[0].dedup_key
        for raw, body in zip((first, later, first), with_id, strict=True)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_source_without_a_token_in_its_url_is_a_mistake() -> None:
    assert "auth: is missing" in mistake('[sources.g]\npreset = "msgraph"\nsecrets = ["env:S"]\n')


# --- secrets in headers, URLs and queries, and lists of addresses


TODAY = datetime(2027, 1, 15, tzinfo=UTC)
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
    return RawRequest("trivore", headers, b"{}", TODAY, url_token=secret if kind == "url_token" else None)


def make_auth(auth: InboundAuth, environment: Mapping[str, str] | None = None) -> Verifier:
    source = Source(name="trivore", preset="trivore", auth=auth)
    return build_verifier(source, PRESETS["trivore"], environment or {})


def is_refused(verifier: Verifier, raw: RawRequest, now: datetime = TODAY) -> bool:
    return find_refusal(verifier, raw, now) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_secret_is_let_in_and_any_other_is_not(kind: str) -> None:
    asked = make_auth(KINDS[kind])
    assert not is_refused(asked, request(kind, "s3cret"))
    assert is_refused(asked, RawRequest("trivore", {}, b"{}", TODAY)), "nothing is shown"
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
    assert not is_refused(make_auth(NoAuth()), RawRequest("trivore", {}, b"", TODAY))


def test_each_of_several_secrets_let_in_within_its_time_only() -> None:
    auth = BearerAuth(
        secrets=[
            Secret("old", not_after=TODAY),
            Secret("present"),
            Secret("next", not_before=TODAY + DAY),
            Secret("last"),
        ]
    )
    several = make_auth(auth)
    let_in = {
        moment: [s for s in ("old", "present", "next", "last") if not is_refused(several, request("bearer", s), moment)]
        for moment in (TODAY - DAY, TODAY, TODAY + DAY)
    }
    assert let_in == {
        TODAY - DAY: ["old", "present", "last"],
        TODAY: ["present", "last"],
        TODAY + DAY: ["present", "next", "last"],
    }


def test_the_scheme_is_compared_without_regard_to_case() -> None:
    for value in ("bearer s3cret", "BEARER  s3cret"):
        assert not is_refused(make_auth(KINDS["bearer"]), RawRequest("s", {"authorization": value}, b"", TODAY))
    for value in ("s3cret", "Bearers3cret", "Token s3cret", "Bearer", "Bearer\ts3cret"):
        assert is_refused(make_auth(KINDS["bearer"]), RawRequest("s", {"authorization": value}, b"", TODAY))


def test_a_bearer_token_may_stand_in_the_query_once() -> None:
    asked = make_auth(KINDS["bearer"])
    for query, let_in in (
        ("access_token=s3cret", True),
        ("a=b&access_token=s3%63ret", True),
        ("access_token=s3cret&access_token=x", False),
        ("token=s3cret", False),
    ):
        assert is_refused(asked, RawRequest("trivore", {}, b"{}", TODAY, query=query)) != let_in, query


@pytest.mark.parametrize(
    "junk",
    [
        *("Basic", "Basic !!!!", "Basic ZGVtbzpzM2NyZXQ", "Basic ZGVt bzpzM2NyZXQ=", "Basic é", "Basic =="),
        basic("dem", "o:s3cret"),  # another user
    ],
)
def test_credentials_that_are_no_base64_or_of_another_user_are_refused(junk: str) -> None:
    assert is_refused(make_auth(KINDS["basic"]), RawRequest("s", {"authorization": junk}, b"", TODAY))


@pytest.mark.parametrize("kind", [*KINDS, "unknown"])
@given(
    value=st.text() | st.binary().map(lambda raw: raw.decode("latin-1")),
    scheme=st.sampled_from(["", "Basic ", "Bearer "]),
)
def test_any_headers_raise_only_a_refusal(kind: str, value: str, scheme: str) -> None:
    asked = pad_work(map(make_auth, KINDS.values())) if kind == "unknown" else make_auth(KINDS[kind])
    raw = RawRequest("s", {"authorization": scheme + value, "x-webhook-token": value}, b"", TODAY, url_token=value)
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
        build_verifier(source, PRESETS["trivore"], {})
    assert not is_refused(build_verifier(source, PRESETS["trivore"], {"TOKEN": "s3cret"}), request("bearer", "s3cret"))


# --- the sender's address; `tests/process/test_receiver.py` tests it over connections


RIGHT = RawRequest("acme", {"authorization": "Bearer s3cret"}, b"{}", TODAY)


def refusal(networks: tuple[str, ...], raw: RawRequest) -> str | None:
    source = Source(name="acme", preset="trivore", auth=KINDS["bearer"], allow_from=[*map(Network.parse, networks)])
    return find_refusal(build_verifier(source, PRESETS["trivore"], {}), raw)


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
def test_addresses_in_a_listed_network_are_accepted(
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
