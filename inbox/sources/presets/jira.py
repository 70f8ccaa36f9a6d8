"""Jira's webhooks that an administrator registered with a secret.

From https://developer.atlassian.com/cloud/jira/platform/webhooks/ (the signature as in WebSub, its example, the
payloads, the headers, the retries). `X-Atlassian-Webhook-Identifier` stays the same in a retry; it is not signed.
Webhooks registered by apps are not signed like this.
"""

from __future__ import annotations

from collections.abc import Mapping

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_ID = "x-atlassian-webhook-identifier"
_MEMBERS: Mapping[str, str] = {"issuelink": "issueLink"}
"""Member of the payload for kinds of objects, if it has another name."""


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    event_type = fields.text_field(payload, "webhookEvent", fields.LONGEST_TYPE)
    things, _, word = event_type.removeprefix("jira:").partition("_")
    thing = payload.get(_MEMBERS.get(things, things))
    identifier = fields.member(thing, "id")
    sent = fields.header_field(raw, _ID, fields.LONGEST_ID) if _ID in raw.headers else None
    return Identity(
        *fields.entity(things, fields.member(thing, "accountId") if identifier is None else identifier),
        event_type=event_type,
        action=fields.classify_action(word),
        occurred_ns=fields.epoch_field(payload, "timestamp", raw.received_at, per_second=1000),
        key_parts=() if sent else fields.content_key(raw, raw.body),
        event_id=sent,
    )


PRESET = Preset(
    title="Jira (Atlassian)",
    shown_at="the field Secret of the webhook: System, WebHooks",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"timestamp": "{ms}", "webhookEvent": "jira:{kind}_{last}", "{kind}": {"id": "{id}"}},
        {"X-Atlassian-Webhook-Identifier": "{unique}"},
    ),
    signatures=(Signature(header="X-Hub-Signature", prefix="sha256="),),
    max_body=4 * 1024 * 1024,  # no limit is documented; the body may contain an issue's descriptions and comments
    kept_headers=frozenset({_ID, "x-atlassian-webhook-flow", "x-atlassian-webhook-retry"}),
)
