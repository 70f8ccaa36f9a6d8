"""Slack's Events API, and its slash commands and interactions.

From https://docs.slack.dev/authentication/verifying-requests-from-slack (the signature and its example, five minutes),
https://docs.slack.dev/apis/events-api (the envelope, `url_verification`, a response within three seconds, three
retries), and `slack_sdk.signature` on PyPI. A retry has the same `event_id`, and `X-Slack-Retry-Num`. Commands and
interactions have no id, but a unique `trigger_id`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inbox.config.sources import Signature
from inbox.errors import InvalidEvent
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Handshake, HandshakeResponse, Mac, Preset, json_sample

_USER, _CHANNEL, _FILE, _TEAM, _GROUP = (
    ("user", "user"),
    ("channel", "channel"),
    ("file", "file_id"),
    ("team", "team"),
    ("subteam", "subteam_id"),
)
_ABOUT: Mapping[str, tuple[str, str]] = {
    "app": _TEAM,
    "emoji": _TEAM,
    "file": _FILE,
    "subteam": _GROUP,
    "team": _TEAM,
    "tokens": _TEAM,
    "user": _USER,
}
"""Entity type and member by the first word of the event type; all other events are about a channel."""


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the event of a request: see `Read`."""
    if raw.content_type == fields.FORM:
        return (_read_interaction(raw, dedup),)
    payload = fields.json_object(raw.body)
    event = payload.get("event")
    if not isinstance(event, Mapping):  # such as app_rate_limited, which has no id
        outer = fields.text_field(payload, "type", fields.LONGEST_TYPE)
        key = (outer, *fields.content_key(raw, raw.body))
        return (fields.with_key(Identity(None, None, outer, "other", fields.arrival(raw), key), payload, dedup),)
    event_type = fields.text_field(event, "type", fields.LONGEST_TYPE)
    subtype = event.get("subtype")
    whole = f"{event_type}.{subtype}" if isinstance(subtype, str) else event_type
    identity = Identity(
        *_entity(payload, event, event_type),
        event_type=fields.entity_type(whole) or event_type,
        action=fields.classify_action(whole.rpartition("_")[2]),
        occurred_ns=fields.epoch_field(payload, "event_time", raw.received_at),
        event_id=fields.text_field(payload, "event_id", fields.LONGEST_ID),
    )
    return (fields.with_key(identity, payload, dedup),)


def greet(raw: RawRequest, _mac: Mac) -> HandshakeResponse | None:
    """Return the echo that Slack expects when it verifies the URL."""
    if b"url_verification" not in raw.body or raw.content_type == fields.FORM:
        return None
    payload = fields.json_object(raw.body)
    if payload.get("type") != "url_verification":
        return None
    challenge = payload.get("challenge")
    if not isinstance(challenge, str):
        raise InvalidEvent("challenge is missing", field="challenge")
    return HandshakeResponse(200, body=msgspec.json.encode({"challenge": challenge}))


def _entity(payload: fields.Payload, event: fields.Payload, event_type: str) -> fields.Entity:
    """Return the user of `user_change`, the channel of `channel_rename`, or else the event's channel, if any."""
    kind, place = _USER if event_type == "team_join" else _ABOUT.get(event_type.partition("_")[0], _CHANNEL)
    # an object if it was created or changed, otherwise only its id
    value = event.get(place, event.get(kind))
    if kind == "team":
        value = payload.get("team_id")
    if value is None and event_type.startswith("reaction_"):
        value = fields.member(event, "item", "channel")
    return fields.entity(kind, fields.member(value, "id") if isinstance(value, Mapping) else value)


def _read_interaction(raw: RawRequest, dedup: fields.Dedup) -> Identity:
    form = dict(fields.form_fields(raw.body))
    payload: fields.Payload = form
    event_type = "slash_command"
    if "payload" in form:
        payload = fields.json_object(form["payload"].encode())
        event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE)
    elif "command" not in form:
        raise InvalidEvent("payload and command are both missing", field="payload")
    trigger = fields.entity_id(payload.get("trigger_id"))
    key = (event_type, trigger) if trigger else fields.content_key(raw, raw.body)
    identity = Identity(None, None, event_type, "other", fields.arrival(raw), key, event_id=trigger)
    return fields.with_key(identity, payload, dedup)


_SAMPLE = {"type": "event_callback", "event_id": "Ev{unique}", "event_time": "{s}"}

PRESET = Preset(
    title="Slack (Events API)",
    shown_at="the Signing Secret of the app: api.slack.com/apps, Basic Information, App Credentials",
    read=read,
    has_own_time=True,
    sample=json_sample({**_SAMPLE, "event": {"type": "{type}", "channel": "{id}", "user": "{id}"}}),
    signatures=(
        Signature(
            header="X-Slack-Signature",
            prefix="v0=",
            timestamp_header="X-Slack-Request-Timestamp",
            content="v0:{timestamp}:{body}",
        ),
    ),
    media_types=frozenset({"application/json", fields.FORM}),
    handshake=Handshake(
        answer=greet, docs='POST of `{"type": "url_verification", "challenge": …}`, signed: the challenge comes back'
    ),
)
