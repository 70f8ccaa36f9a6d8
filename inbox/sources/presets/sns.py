"""Amazon SNS' messages to HTTP endpoints: notifications, and confirmations of subscribing or unsubscribing.

From https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html (the signed text and its hash),
https://docs.aws.amazon.com/sns/latest/dg/http-notification-json.html (the messages), and AWS' own libraries:
`sns-validator` on npm, which checked the vectors, and `sns-message-manager` of the SDK for Java (the host of the
topic's region, the certificate's names). Anyone can have SNS sign messages of their own topic, so a source lists its
`topics`.

`Type`, `MessageId`, `TopicArn`, `Timestamp`, `Message` and `Subject` are signed, but not `MessageAttributes`. The
signed text has a line for each name and value, so a line break in any value except `Message` is ambiguous and rejected.

`SubscribeURL` is never visited: a confirmation becomes an event, where the operator finds the URL. Raw message delivery
is not signed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Source
from inbox.errors import InvalidEvent
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, Proof, Read, Revealed
from inbox.sources.keys import CertificateStore, Claim, MissingCertificate, RsaHash, signature_bytes
from inbox.sources.presets import custom

_URL = re.compile(
    r"https://(?P<host>sns\.[a-z0-9-]{1,40}\.amazonaws\.com(?:\.cn)?)(?P<path>/[A-Za-z0-9_-]{1,100}\.pem)", re.ASCII
)
_NAMES = re.compile(r"sns(-[a-z0-9-]{1,40})?(\.[a-z0-9-]{1,40})?\.amazonaws\.com(\.cn)?", re.ASCII)
"""Pattern of names in certificates: `sns.amazonaws.com`, `sns-cn-north-1.amazonaws.com.cn`,
`sns-signing.eu-south-1.amazonaws.com`."""

_NOTIFICATION = "Notification"
_CONFIRMED = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED: Mapping[str, Sequence[str]] = {
    _NOTIFICATION: ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": _CONFIRMED,
    "UnsubscribeConfirmation": _CONFIRMED,
}
"""Signed members in their order, by type."""
_ALGORITHMS: Mapping[str, RsaHash] = {"1": "sha1", "2": "sha256"}


class _Message(msgspec.Struct):
    """The members that authenticate a message, under SNS' names."""

    Type: str
    Message: str
    MessageId: str
    Timestamp: str
    TopicArn: str
    SignatureVersion: str
    Signature: str
    SigningCertURL: str
    Subject: str | None = None
    SubscribeURL: str | None = None
    Token: str | None = None


class SignedMessage(Proof):
    """Proof that SNS signed the body for one of the source's topics."""

    passes = 2
    """Passes through a body: one to parse it, and one to hash the message."""

    def __init__(self, source: Source, _secrets: Revealed) -> None:
        self._hosts = {str(topic): topic.host for topic in source.topics or ()}
        self._algorithms = {"2": _ALGORITHMS["2"]} if not source.allow_sha1 else _ALGORITHMS
        self.certificates = CertificateStore(_URL, _NAMES)
        # One kind per source: its topics and certificates determine the work of a request. Without that work, the time
        # of another source's rejection would reveal which source they belong to.
        self.kind = (SignedMessage, source.name)

    def fault(self, raw: RawRequest, now: datetime) -> str | MissingCertificate | None:
        """See Proof. A certificate counts as missing only for one of the topics, at the host of its region."""
        claim = self._claim(raw)
        return claim if isinstance(claim, str) else self.certificates.fault(claim, now)

    def _claim(self, raw: RawRequest) -> Claim | str:
        """Return the claim made by a message's signature, or the reason why it is invalid."""
        message = fields.decode_as(_Message, raw.body)
        if message is None:
            is_raw = "x-amz-sns-rawdelivery" in raw.headers
            return f"the body is not a signed message of SNS{'; turn raw message delivery off' if is_raw else ''}"
        host = self._hosts.get(message.TopicArn)
        if host is None:
            return "its topic is not listed in this source's topics"
        algorithm = self._algorithms.get(message.SignatureVersion)
        if algorithm is None:
            return "its SignatureVersion is not 2: set that of the topic, or allow_sha1 = true for version 1"
        url = self.certificates.url(message.SigningCertURL)
        if url is None or url.host != host:
            return f"its SigningCertURL is not a certificate at {host}"
        content, signature = _text_to_sign(message), signature_bytes(message.Signature)
        if content is None or signature is None:
            return "it is not a well-formed signed message"
        return Claim(url, (content,), signature, algorithm)


def _text_to_sign(message: _Message) -> bytes | None:
    """Return the signed text; None if a value is missing, or ambiguous because of a line break."""
    lines: list[str] = []
    for name in _SIGNED.get(message.Type, ()):
        value = getattr(message, name)
        if value is None and name == "Subject":
            continue
        if value is None or (name != "Message" and "\n" in value):
            return None
        lines += (name, value)
    return "\n".join([*lines, ""]).encode() if lines else None


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    event_type = fields.text_field(payload, "Type", fields.LONGEST_TYPE)
    if event_type not in _SIGNED:
        raise InvalidEvent(f"Type must be one of {', '.join(_SIGNED)}", field="Type")
    message_id = fields.text_field(payload, "MessageId", fields.LONGEST_ID)
    at = fields.time_field(payload, "Timestamp", raw.received_at)
    return Identity(None, None, event_type, "other", at, event_id=message_id)


read = fields.make_object_reader(_event)
"""Reads the event of a message, as wrapped by SNS."""


def reader(source: Source) -> Read:
    """Make the reader of `source`; with `event`, it reads the JSON in `Message`, which is stored as JSON, not as text.

    Raises:
        ValueError: an expression can't be compiled. The text names it.
    """
    if source.event is None:
        return read
    described, read_message = source.event, custom.reader(source)

    def read_inside(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
        (outer,) = read(raw, None)
        if outer.event_type != _NOTIFICATION:
            return (outer,)
        message = _inner(raw.body)
        inner = read_message(msgspec.structs.replace(raw, body=message), dedup)
        by_message = dedup is None and described.id is None
        return tuple(
            msgspec.structs.replace(
                each,
                key_parts=(*outer.key_parts, str(place)) if by_message else each.key_parts,
                event_id=each.event_id or outer.event_id,
                occurred_ns=outer.occurred_ns if described.time is None else each.occurred_ns,
                part=each.part or _unwrap(raw.body, message),
                part_type="application/json",
            )
            for place, each in enumerate(inner)
        )

    return read_inside


def _inner(body: bytes) -> bytes:
    """Return the JSON in `Message`, either the text that SNS sent, or the value made by `_unwrap`.

    Raises:
        InvalidEvent: it is missing.
    """
    payload = fields.json_object(body)
    if isinstance(payload.get("Message"), dict | list):
        return bytes(msgspec.json.decode(body, type=dict[str, msgspec.Raw])["Message"])
    return fields.text_field(payload, "Message", len(body)).encode()


def _unwrap(body: bytes, message: bytes) -> bytes:
    """Return the body with `message` as JSON, so that routes find its members and the body can be reread."""
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**members, "Message": msgspec.Raw(message)})


PRESET = Preset(
    title="Amazon SNS",
    shown_at="a text of your own, as the last part of the endpoint's URL",
    read=read,
    reader=reader,
    reads_by="event",
    keeps=custom.keeps,
    has_own_time=True,
    prover=SignedMessage,
    proves_by="topics",
    own_keys=frozenset({"allow_sha1", "event", "topics"}),
    # auth: otherwise strangers could trigger fetches of certificates and delay other requests
    needs=frozenset({"auth", "topics"}),
    media_types=frozenset({"application/json", "text/plain"}),
    max_body=1024 * 1024,  # messages of 256 KB, which are quoted in the body
    starter="""\
topics = ["arn:aws:sns:eu-west-1:123456789012:orders"]  # whose SignatureVersion is 2
[sources.sns.auth]  # of the endpoint: /webhooks/sns/TOKEN
kind = "url_token"
secrets = ["env:{variable}"]""",
)
