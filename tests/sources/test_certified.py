"""Amazon SNS and PayPal: signatures checked by a certificate, and URLs that must never be fetched."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sources import EventFields, Source
from inbox.config.values import Duration, Secret, TopicArn
from inbox.errors import ConfigError, InvalidEvent, RequestError, Unreadable
from inbox.events.event import Event, dedup_key
from inbox.sources import PRESETS, build_preset
from inbox.sources.keys import MOST_KEPT, CertificateUrl
from inbox.sources.normalize import make_events
from inbox.sources.presets.sns import SignedMessage
from tests.helpers.webhooks import mistake
from tests.sources.certified import (
    CONFIRMATION,
    NOTIFICATION,
    PAYPAL_AT,
    PAYPAL_BODY,
    PAYPAL_HOST,
    PAYPAL_NAME,
    PAYPAL_PATH,
    SNS_AT,
    SNS_HOST,
    SNS_NAME,
    SNS_PATH,
    SNS_PEM,
    TOPIC,
    WEBHOOK,
    find_fetched,
    make_paypal,
    make_sns,
    paypal_verifier,
    pem_of,
    sign_paypal,
    sign_sns,
    signing_key,
    sns_verifier,
    with_token,
)
from tests.sources.presenting import extreme_bodies, find_refusal, make_request

SNS, PAYPAL = sns_verifier(), paypal_verifier()
OURS = {"sns": pem_of(SNS_NAME, signing_key()), "paypal": pem_of(PAYPAL_NAME, signing_key())}


# --- requests that the providers' own libraries accept


def test_a_request_that_the_providers_libraries_accept_is_let_in() -> None:
    assert find_refusal(SNS, make_sns(NOTIFICATION)) is None
    assert find_refusal(sns_verifier(allow_sha1=True), make_sns(CONFIRMATION)) is None
    assert find_refusal(PAYPAL, make_paypal()) is None


@given(place=st.integers(0, len(PAYPAL_BODY) - 1), bit=st.integers(0, 7))
def test_any_other_bit_in_a_body_of_paypal_is_refused(place: int, bit: int) -> None:
    body = bytearray(PAYPAL_BODY)
    body[place] ^= 1 << bit
    assert find_refusal(PAYPAL, make_paypal(bytes(body))) == "its signature is not by the key of its certificate"


def test_another_length_is_refused() -> None:
    for body in (b"", PAYPAL_BODY[:-1], PAYPAL_BODY + b" "):
        assert find_refusal(PAYPAL, make_paypal(body)) is not None
    for body in (b"", b"[]", b"{}", b"\xff", b'"', b"[" * 100_000, make_sns(NOTIFICATION).body[:-1]):
        assert find_refusal(SNS, msgspec.structs.replace(make_sns({}), body=body)) is not None


def test_each_member_of_sns_and_each_header_of_paypal_is_signed() -> None:
    for name in ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type", "Signature"):
        assert find_refusal(SNS, make_sns({**NOTIFICATION, name: NOTIFICATION[name] + "x"})) is not None
        assert find_refusal(SNS, make_sns({key: each for key, each in NOTIFICATION.items() if key != name})) is not None
    for name in ("id", "time", "sig"):
        for value in ("", "x", "2025-08-29T10:49:06Z", "a|b", "é", "0" * 100_000, "\x00"):
            changed: dict[str, Any] = {f"paypal_transmission_{name}": value}
            assert find_refusal(PAYPAL, make_paypal(**changed)) is not None, (name, value)


# --- certificates


TRICKS = [
    "http://{host}{path}",
    "HTTPS://{host}{path}",
    "https://{host}:443{path}",
    "https://user@{host}{path}",
    "https://{host}@evil.example{path}",
    "https://evil.example\\@{host}{path}",
    "https://evil.example/{host}{path}",
    "https://{host}.evil.example{path}",
    "https://evil{host}{path}",
    "https://{host}.{path}",
    "https://{host}%2eevil.example{path}",
    "https://{host}{path}?x",
    "https://{host}{path}/",
    "https://{host}/{path}",
    "https://{host}/a%2f..{path}",
    "https://{host}{path}\n",
    " https://{host}{path}",
    "//{host}{path}",
    "",
    "https://{host}" + "/a" * 100_000 + ".pem",
    "https://[::1]{path}",
    "https://127.0.0.1{path}",
    "https://\u0455ns.eu-west-1.amazonaws.com{path}",  # Cyrillic
    "https://api.p\u0430ypal.com{path}",
    "https://{host}\uff0eevil.example{path}",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_in_a_url_has_anything_fetched(trick: str) -> None:
    of_aws, of_pp = (
        trick.format(host=host, path=path) for host, path in ((SNS_HOST, SNS_PATH), (PAYPAL_HOST, PAYPAL_PATH))
    )
    message = sign_sns(SigningCertURL=of_aws)
    raw = sign_paypal(paypal_cert_url=of_pp)
    for verifier, asked in ((sns_verifier(None), make_sns(message)), (paypal_verifier(None), raw)):
        assert "is not a certificate at" in (find_refusal(verifier, asked) or "")


def test_the_certificate_has_to_be_at_the_host_of_the_topics_region() -> None:
    for host in (
        "sns.us-east-1.amazonaws.com",
        "sns.eu-west-1.amazonaws.com.cn",
        "amazonaws.com",
        "s3.eu-west-1.amazonaws.com",
    ):
        assert find_fetched(sns_verifier(None), make_sns(sign_sns(SigningCertURL=f"https://{host}{SNS_PATH}"))) is None
    for path in ("/x", "/.pem", "/a.b.pem"):
        assert find_fetched(sns_verifier(None), make_sns(sign_sns(SigningCertURL=f"https://{SNS_HOST}{path}"))) is None
    topic, there = TopicArn.parse("arn:aws-cn:sns:cn-north-1:123456789012:orders"), "sns.cn-north-1.amazonaws.com.cn"
    message = sign_sns(TopicArn=topic, SigningCertURL=f"https://{there}{SNS_PATH}")
    assert find_fetched(sns_verifier(None, topic), make_sns(message)) == f"https://{there}{SNS_PATH}", "of China"


def test_a_certificate_is_fetched_only_when_everything_else_is_proven() -> None:
    good, raw = make_sns(NOTIFICATION), make_paypal()
    assert find_fetched(sns_verifier(None), good) == NOTIFICATION["SigningCertURL"]
    assert find_fetched(paypal_verifier(None), raw) == raw.headers["paypal-cert-url"]
    others = {
        "topic": make_sns(sign_sns(TopicArn="arn:aws:sns:eu-west-1:210987654321:orders")),
        "version": make_sns(sign_sns(SignatureVersion="1")),
        "unknown version": make_sns({**NOTIFICATION, "SignatureVersion": "3"}),
        "signature": make_sns({**NOTIFICATION, "Signature": "AAAA"}),
        "type": make_sns(sign_sns(Type="Other")),
    }
    assert {name: find_fetched(sns_verifier(None), each) for name, each in others.items()} == dict.fromkeys(others)
    for verifier, sent in (
        (sns_verifier(None, auth=with_token("t")), good),
        (paypal_verifier(None, auth=with_token("t")), raw),
    ):
        assert find_fetched(verifier, sent) is None
        assert find_fetched(verifier, msgspec.structs.replace(sent, url_token="x")) is None
        assert find_fetched(verifier, msgspec.structs.replace(sent, url_token="t")) is not None
    assert find_fetched(sns_verifier(None, allow_from=["192.0.2.0/24"]), good) is None
    old = msgspec.structs.replace(raw, received_at=PAYPAL_AT + timedelta(days=5))
    assert "before it arrived" in (find_refusal(paypal_verifier(None), old) or "")


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (b"", "not a certificate"),
        (b"<html>", "not a certificate"),
        (SNS_PEM[:-200], "not a certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
        (pem_of("evil.example", signing_key()), "another name"),
        (pem_of("sns.amazonaws.com.evil.example", signing_key()), "another name"),
        (pem_of("xsns.amazonaws.com", signing_key()), "another name"),
        (pem_of(SNS_NAME, signing_key(), lasts=timedelta(days=30)), "valid from 2025-01-01 to 2025-01-31 only"),
        (pem_of(SNS_NAME, signing_key(), begins=SNS_AT + timedelta(seconds=1)), "is valid from"),
        (pem_of(SNS_NAME, signing_key(1024)), "RSA"),
        (pem_of(SNS_NAME, ec.generate_private_key(ec.SECP256R1())), "RSA"),
    ],
)
def test_a_certificate_that_is_not_the_providers_or_not_valid_is_not_kept(pem: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sns_verifier(pem)


def test_certificates_have_the_names_in_aws_own_library() -> None:
    for name in (
        "sns-cn-north-1.amazonaws.com.cn",
        "sns-signing.eu-south-1.amazonaws.com",
        "sns-us-gov-west-1.amazonaws.com",
    ):
        for pem in (pem_of(name, signing_key()), pem_of("x", signing_key(), alternative=name)):
            assert find_refusal(sns_verifier(pem), make_sns(sign_sns())) is None


def test_a_certificate_that_has_expired_since_is_fetched_again_and_nothing_is_refused_for_a_clock() -> None:
    """A 401 is final for SNS, so a wrong clock here would lose messages."""
    for moment in (datetime(2020, 1, 1, tzinfo=UTC), datetime(2126, 1, 1, tzinfo=UTC)):
        assert find_fetched(SNS, make_sns(NOTIFICATION, moment)) == NOTIFICATION["SigningCertURL"]


def test_few_certificates_are_kept_and_the_oldest_is_fetched_again() -> None:
    verifier = sns_verifier()
    (proof,) = verifier.proofs
    assert isinstance(proof, SignedMessage)
    for number in range(MOST_KEPT):
        assert find_fetched(verifier, make_sns(NOTIFICATION)) is None
        proof.certificates.add(CertificateUrl(SNS_HOST, f"/{number}.pem"), SNS_PEM, SNS_AT)
    assert find_fetched(verifier, make_sns(NOTIFICATION)) == NOTIFICATION["SigningCertURL"]


# --- signatures


def test_a_topic_of_another_account_is_refused_however_it_is_signed() -> None:
    verifier = sns_verifier(OURS["sns"])
    assert find_refusal(verifier, make_sns(sign_sns())) is None
    for topic in ("arn:aws:sns:eu-west-1:210987654321:orders", f"{TOPIC}x", TOPIC.upper(), "", f"{TOPIC}\n"):
        assert find_refusal(verifier, make_sns(sign_sns(TopicArn=topic))) is not None


def test_sha1_is_an_option() -> None:
    """The version is not signed, so only this option allows the weaker hash."""
    sha1 = make_sns(sign_sns(SignatureVersion="1"))
    assert "SignatureVersion is not 2" in (find_refusal(sns_verifier(OURS["sns"]), sha1) or "")
    allowing = sns_verifier(OURS["sns"], allow_sha1=True)
    assert find_refusal(allowing, sha1) is None
    assert find_refusal(allowing, make_sns(sign_sns())) is None
    for version in ("1", "2"):
        other = {**sign_sns(SignatureVersion={"1": "2", "2": "1"}[version]), "SignatureVersion": version}
        assert find_refusal(allowing, make_sns(other)) is not None
    assert find_refusal(PAYPAL, make_paypal(paypal_auth_algo="SHA1withRSA")) == "PAYPAL-AUTH-ALGO is not SHA256withRSA"


@pytest.mark.parametrize("name", ["MessageId", "Subject", "Timestamp", "TopicArn", "Type"])
def test_a_signed_text_can_be_read_in_one_way_only(name: str) -> None:
    """The signed text has a line for each name and value; a line break in a value could turn part of a message into its id."""
    topics = (TOPIC, TopicArn(f"{TOPIC}\nx"))
    verifier = sns_verifier(OURS["sns"], *topics)
    for value in (f"{NOTIFICATION[name]}\nx", f"x\n{NOTIFICATION[name]}", "\n"):
        changed: dict[str, Any] = {name: value}
        assert find_refusal(verifier, make_sns(sign_sns(**changed))) is not None
    shifted = sign_sns(Message="a\nMessageId\n22b80b92\nSubject\nx", MessageId="1", Subject=None)
    assert find_refusal(verifier, make_sns(shifted)) is None
    forged = {**shifted, "Message": "a", "MessageId": "22b80b92\nSubject\nx\nMessageId\n1"}
    assert find_refusal(verifier, make_sns(forged)) is not None


def test_an_id_of_another_webhook_proves_nothing_and_ids_are_rolled_as_secrets_are() -> None:
    pem = OURS["paypal"]
    until = PAYPAL_AT + timedelta(seconds=1)
    rolled = paypal_verifier(pem, Secret("OLD", not_after=until), Secret("NEW"))
    for moment, let_in in ((PAYPAL_AT, {"OLD", "NEW"}), (until, {"NEW"})):
        found = {
            webhook
            for webhook in ("OLD", "NEW", "OTHER", "")
            if find_refusal(rolled, sign_paypal(at=moment, webhook=webhook)) is None
        }
        assert found == let_in
    expired = paypal_verifier(None, Secret("OLD", not_after=PAYPAL_AT))
    assert find_refusal(expired, make_paypal()) == "no secret is valid now"


def test_a_captured_transmission_stays_one_event_with_any_forged_body() -> None:
    """An attacker with a request can forge a body of the same CRC-32; the transmission id is signed itself."""
    keys = {
        dedup_key(PRESETS["paypal"].read(make_paypal(PAYPAL_BODY.replace(b"WH-7", other)), None)[0])
        for other in (b"WH-7", b"WH-8")
    }
    assert keys == {"d938e770-8046-11e6-8103-6b62a8a99ac4"}
    verifier = paypal_verifier()
    for days, let_in in ((-4.1, False), (-3.9, True), (3.9, True), (4.1, False)):
        assert (find_refusal(verifier, make_paypal(at=PAYPAL_AT + timedelta(days=days))) is None) == let_in
    short = paypal_verifier(tolerance=Duration(60))
    assert find_refusal(short, make_paypal(at=PAYPAL_AT + timedelta(minutes=2))) is not None


def test_a_text_that_can_be_no_id_of_a_webhook_is_a_mistake() -> None:
    for secret in (" ", "a|b", "é", "x" * 101, "https://example.com"):
        with pytest.raises(ConfigError, match="not a webhook id"):
            paypal_verifier(None, Secret(secret))
    with pytest.raises(ConfigError, match="may be tried"):
        paypal_verifier(None, *[Secret(WEBHOOK)] * 6)


def test_raw_message_delivery_is_named() -> None:
    raw = msgspec.structs.replace(make_sns({}, x_amz="1"), body=b"plain")
    headers = {**raw.headers, "x-amz-sns-rawdelivery": "true"}
    assert "turn raw message delivery off" in (find_refusal(SNS, msgspec.structs.replace(raw, headers=headers)) or "")


# --- events


def read(
    message: dict[str, Any], event: EventFields | None = None, dedup: list[str] | None = None
) -> tuple[Event, ...]:
    source = Source(name="sns", preset="sns", topics=[TOPIC], event=event, dedup=dedup)
    return make_events(source, build_preset(source), make_sns(message), [])


def test_a_message_is_an_event_as_sns_wrapped_it() -> None:
    (event,) = read(NOTIFICATION)
    assert (event.event_type, event.entity_id, event.event_id) == ("Notification", None, NOTIFICATION["MessageId"])
    assert event.occurred_at == datetime(2025, 5, 2, 0, 54, 6, 655_000, UTC)
    assert event.body == make_sns(NOTIFICATION).body
    (asked,) = read(CONFIRMATION)
    assert (asked.event_type, asked.action) == ("SubscriptionConfirmation", "other")
    with pytest.raises(InvalidEvent, match="Type must be one of"):
        read({**NOTIFICATION, "Type": "Other"})


ORDERS = EventFields(
    type="body.type", entity_type="'ORDER'", entity_id="body.order", actions={"order.updated": "update"}
)


def test_with_event_the_message_inside_is_the_event() -> None:
    inner = '{"type": "order.updated", "order": 42}'
    wrapped = {**NOTIFICATION, "Message": inner}
    (event,) = read(wrapped, ORDERS)
    assert (event.entity_type, event.entity_id, event.event_type) == ("ORDER", "42", "order.updated")
    assert (event.event_id, event.content_type) == (NOTIFICATION["MessageId"], "application/json")
    assert event.occurred_at == datetime(2025, 5, 2, 0, 54, 6, 655_000, UTC)
    assert json.loads(event.body) == {**NOTIFICATION, "Message": json.loads(inner)}
    assert inner.encode() in event.body
    (stored,), (other,) = (
        read(each, ORDERS) for each in ({**wrapped, "Message": json.loads(inner)}, {**wrapped, "MessageId": "b"})
    )
    assert (stored.dedup_key, stored.entity_id, stored.occurred_at) == (event.dedup_key, "42", event.occurred_at)
    assert event.dedup_key != other.dedup_key
    (named,), (again,) = (read({**wrapped, "MessageId": each}, ORDERS, ["order"]) for each in "ab")
    assert named.dedup_key == again.dedup_key
    assert read(CONFIRMATION, ORDERS)[0].event_type == "SubscriptionConfirmation"
    for wrong in (None, 1, True, "no JSON", '{"order": 42}', ""):
        with pytest.raises((InvalidEvent, Unreadable)):
            read({**NOTIFICATION, "Message": wrong}, ORDERS)


def test_any_message_is_refused_or_an_event_that_can_be_read_again() -> None:
    sample = make_request("sns", b'{"type": "order.updated", "order": 42}', {"Content-Type": "application/json"})
    for body in extreme_bodies(sample):
        try:
            (event,) = read({**NOTIFICATION, "Message": body.decode("utf-8", "replace")}, ORDERS)
        except RequestError as error:
            error.detail.encode()
            continue
        (again,) = read(json.loads(event.body), ORDERS)
        assert (again.entity_id, again.event_type, again.dedup_key) == (
            *(event.entity_id, event.event_type),
            event.dedup_key,
        )


def test_with_items_each_is_an_event_of_its_own() -> None:
    several = msgspec.structs.replace(ORDERS, items="body.list", type="item.type", entity_id="item.order")
    inner = '{"list": [{"type": "order.updated", "order": 1}, {"type": "order.updated", "order": 1}]}'
    events = read({**NOTIFICATION, "Message": inner}, several)
    assert len({event.dedup_key for event in events}) == 2
    assert {event.body for event in events} == {b'{"type":"order.updated","order":1}'}


def test_an_event_of_paypal_is_about_its_resource() -> None:
    (identity,) = PRESETS["paypal"].read(make_paypal(), None)
    assert (identity.entity_type, identity.entity_id, identity.event_type, identity.action) == (
        *("capture", "42", "PAYMENT.CAPTURE.COMPLETED"),
        "other",
    )
    assert identity.event_id == "WH-7MU294299R542214K-4N1831857K851783H"


# --- the configuration


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("", "topics: is missing"),
        ("topics = []", "topics"),
        ('topics = ["orders"]', "expected a topic such as"),
        ('topics = ["arn:aws:sns:eu-west-1:123456789012:orders.fifo"]', "expected a topic such as"),
        ('topics = ["arn:aws:sns:eu-west-1.evil.example/:123456789012:a"]', "expected a topic such as"),
        (f'topics = ["{TOPIC}"]\nsecrets = ["env:S"]', "known by topics"),
        (f'topics = ["{TOPIC}"]\nunsigned = true', "known by topics"),
        (f'topics = ["{TOPIC}"]\ntolerance = "5m"', "no time of sending is signed"),
        (f'topics = ["{TOPIC}"]\nevent = {{ type = "body." }}', "event"),
    ],
)
def test_mistakes_of_a_source_are_named_and_it_needs_an_auth(lines: str, why: str) -> None:
    """Otherwise strangers could make the receiver fetch certificates."""
    open_to_all = 'auth = { kind = "none" }\n'
    assert why in mistake(f'[sources.s]\npreset = "sns"\n{open_to_all}{lines}\n')
    paypal = '[sources.p]\npreset = "paypal"\nsecrets = ["env:S"]\n'
    for text in (paypal, f'[sources.s]\npreset = "sns"\ntopics = ["{TOPIC}"]\n'):
        assert "auth: is missing" in mistake(text)
    assert "topics: is for preset = 'sns' only" in mistake(f'{paypal}{open_to_all}topics = ["{TOPIC}"]\n')
