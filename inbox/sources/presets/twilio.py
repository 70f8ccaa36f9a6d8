"""Twilio's webhooks of messages, calls and their status, as forms.

From https://www.twilio.com/docs/usage/security (the signature is over the URL and the form's names and values, with the
account's Auth Token) and the client `twilio` on PyPI (`twilio/request_validator.py`: a repeated value counts once).
Twilio names no event types: the type is built from the kind of object and its status. A retry has the same body.

The response is empty, even for webhooks that expect content, such as TwiML for a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlencode

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, Sample

_MOST_FIELDS = 200
_THINGS: Mapping[str, tuple[str, str]] = {
    "MessageSid": ("message", "MessageStatus"),
    "SmsSid": ("message", "SmsStatus"),
    "RecordingSid": ("recording", "RecordingStatus"),
    "ConferenceSid": ("conference", "StatusCallbackEvent"),
    "CallSid": ("call", "CallStatus"),
    "ConversationSid": ("conversation", "EventType"),
    "RoomSid": ("room", "StatusCallbackEvent"),
    "TaskSid": ("task", "EventType"),
}
"""Kind of object and field of the status, by the field with its id; the first one present counts."""


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the event of a form: see `Read`."""
    form = dict(fields.form_fields(raw.body, _MOST_FIELDS))
    named = next((name for name in _THINGS if form.get(name)), "")
    thing, status = _THINGS.get(named, ("", ""))
    kind, identifier = fields.entity(thing, form.get(named))
    word = form.get(status) or form.get("SmsStatus") or "webhook"
    identity = Identity(
        kind,
        identifier,
        event_type=fields.entity_type(f"{thing}.{word}" if thing else form.get("EventType")) or "webhook",
        action="create" if word in {"received", "ringing"} else "update" if kind else "other",
        occurred_ns=fields.arrival(raw),
        key_parts=fields.content_key(raw, raw.body),
    )
    return (fields.with_key(identity, form, dedup),)


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make a status webhook of an object; `kind` is `message`, `call` or another of Twilio's."""
    named = next((name for name, (thing, _) in _THINGS.items() if thing == kind), "MessageSid")
    form = {
        named: identifier,
        _THINGS[named][1]: event_type.rpartition(".")[2],
        "Timestamp": f"{at:%a, %d %b %Y %T %z}",
    }
    return Sample(urlencode(form).encode(), {"Content-Type": fields.FORM})


PRESET = Preset(
    title="Twilio",
    shown_at="the account's Auth Token: Twilio Console, Account, API keys and tokens",
    read=read,
    sample=sample,
    signatures=(
        Signature(header="X-Twilio-Signature", content="{url}{sorted_params}", algorithm="sha1", encoding="base64"),
    ),
    # the signature covers forms only
    media_types=frozenset({fields.FORM}),
    answers_empty=True,
    status=204,
    starter="""\
secrets = ["env:{variable}"]
public_url = "https://hooks.example.com/webhooks/twilio"  # as Twilio calls it, which is signed""",
)
