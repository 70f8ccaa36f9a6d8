"""GitLab's webhooks: of projects and groups, and the system hooks of an instance.

From https://docs.gitlab.com/user/project/integrations/webhooks/ (headers, the secret token, the signing token) and
https://docs.gitlab.com/administration/system_hooks/. With a signing token, GitLab signs as in Standard Webhooks;
otherwise it only sends its secret token in `X-Gitlab-Token`, so configure `auth = { kind = "header", … }`.
`Idempotency-Key` stays the same in a retry, and `webhook-id` has the same value; before GitLab 17.4 both are missing,
and the body identifies the event within five minutes. `X-Gitlab-Event-UUID` is shared by all webhooks of one event, and
`X-Gitlab-Webhook-UUID` is new for each request (`app/services/web_hook_service.rb`, which also has the limit of 25 MB).
"""

from __future__ import annotations

from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample
from inbox.sources.presets import standard_webhooks

_KEY, _MESSAGE, _EVENT = "idempotency-key", "webhook-id", "x-gitlab-event"
_ACTIONS = fields.actions(
    create=("award",),
    update=("approval", "approved", "close", "merge", "reopen", "unapproval", "unapproved"),
    delete=("revoke",),
)


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    id_header = next((name for name in (_MESSAGE, _KEY) if name in raw.headers), None)  # the first one is signed
    delivery = fields.header_field(raw, id_header, fields.LONGEST_ID) if id_header else None
    name = fields.text_field(payload, "object_kind" if "object_kind" in payload else "event_name", fields.LONGEST_TYPE)
    word = fields.member(payload, "object_attributes", "action") or payload.get("action")
    event_type = (fields.entity_type(f"{name}.{word}") if isinstance(word, str) else None) or name
    last = event_type.replace("_", ".").rpartition(".")[2]
    return Identity(
        *_entity(name, payload),
        event_type=event_type,
        action=_ACTIONS.get(last, fields.classify_action(last)),
        occurred_ns=fields.arrival(raw),
        key_parts=() if delivery else fields.content_key(raw, raw.body),
        event_id=delivery,
    )


def _entity(name: str, payload: fields.Payload) -> fields.Entity:
    """Return the event's object, the user of a system hook such as `user_create`, or else the project."""
    thing = name.partition("_")[0]
    return fields.first_entity(
        (
            (name, fields.member(payload, "object_attributes", "id")),
            (name if "object_kind" in payload else thing, payload.get("id")),
            (thing, payload.get(f"{thing}_id")),
            ("project", payload.get("project_id")),
            ("project", fields.member(payload, "project", "id")),
            ("group", payload.get("group_id")),
        )
    )


PRESET = Preset(
    title="GitLab",
    shown_at="the signing token or the secret token of the hook: Settings, Webhooks, of the project or group",
    read=fields.make_object_reader(_event),
    sample=json_sample(
        {"object_kind": "{first}", "object_attributes": {"id": "{number}", "action": "{last}"}},
        {"X-Gitlab-Event": "{first} Hook", "Idempotency-Key": "{unique}"},
        message_id="{unique}",
    ),
    signatures=(standard_webhooks.signature("webhook"),),
    may_be_unsigned=True,
    max_body=25 * 1024 * 1024,
    kept_headers=frozenset({_KEY, _MESSAGE, _EVENT, "x-gitlab-event-uuid", "x-gitlab-instance"}),
    starter="""\
auth = { kind = "header", name = "X-Gitlab-Token", secrets = ["env:{variable}"] }
# secrets = ["env:GITLAB_SIGNING_TOKEN"]  # instead, where the hook has a signing token""",
)
