"""GitHub's webhooks of repositories, organisations and apps.

From https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries (the signature and its example),
https://docs.github.com/en/webhooks/webhook-events-and-payloads (headers, payloads, the cap of 25 MB) and
https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks (the response within 10 seconds).

GitHub does not retry: a failed delivery is lost unless it is redelivered, manually or by the API, within three days. A
redelivery has the same `X-GitHub-Delivery`. Deliveries of one event to several hooks, such as those of a repository and
its organisation, share it too: sent to one source, they are one event. Payloads have no event time. Events without an
object of their own, such as a push, or an alert with only a number, are about the repository.

The older `X-Hub-Signature` (SHA-1) is ignored. A hook may send its JSON in the field `payload` of a form, whose
signature covers the form. The form may be nearly three times as large, so choose `application/json` for large events.
"""

from __future__ import annotations

from collections.abc import Mapping

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_EVENT, _DELIVERY = "x-github-event", "x-github-delivery"
_LONGEST_NAME = 50

_ENTITIES: Mapping[str, tuple[str, str]] = {
    "branch_protection_rule": ("branch_protection_rule", "rule"),
    "commit_comment": ("commit_comment", "comment"),
    "deploy_key": ("deploy_key", "key"),
    "deployment_review": ("workflow_run", "workflow_run"),
    "discussion_comment": ("discussion_comment", "comment"),
    "fork": ("repository", "forkee"),
    "installation_repositories": ("installation", "installation"),
    "issue_comment": ("issue_comment", "comment"),
    "issues": ("issue", "issue"),
    "member": ("user", "member"),
    "membership": ("team", "team"),
    "org_block": ("user", "blocked_user"),
    "pull_request_review": ("pull_request_review", "review"),
    "pull_request_review_comment": ("pull_request_review_comment", "comment"),
    "pull_request_review_thread": ("pull_request", "pull_request"),
    "repository_vulnerability_alert": ("alert", "alert"),
    "team_add": ("team", "team"),
}
"""The entity's type and its member in the payload, if they differ from the event's name.

Based on the 249 example payloads of https://github.com/octokit/webhooks.
"""

_ROUND_ABOUT = tuple((each, each) for each in ("repository", "organization", "installation"))
"""Fallback objects of events without one of their own, such as a push."""


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    event = fields.header_field(raw, _EVENT, _LONGEST_NAME)
    word = payload.get("action")
    word = word if isinstance(word, str) and word and len(word) <= _LONGEST_NAME and word.isascii() else ""
    return Identity(
        *_entity(event, payload),
        event_type=fields.entity_type(f"{event}.{word}" if word else event) or event,
        action=fields.classify_action(word),
        occurred_ns=fields.arrival(raw),
        event_id=fields.header_field(raw, _DELIVERY, fields.LONGEST_ID),
    )


def _entity(event: str, payload: fields.Payload) -> fields.Entity:
    kind, place = _ENTITIES.get(event, (event, event))
    found = ((name, fields.member(payload, where, "id")) for name, where in ((kind, place), *_ROUND_ABOUT))
    return fields.first_entity(found)


PRESET = Preset(
    title="GitHub",
    shown_at="the field Secret of the hook: Settings, Webhooks, of the repository, organisation or app",
    read=fields.make_object_reader(_event),
    sample=json_sample(
        {"action": "{last}", "{kind}": {"id": "{number}"}},
        {"X-GitHub-Event": "{first}", "X-GitHub-Delivery": "{unique}"},
    ),
    signatures=(Signature(header="X-Hub-Signature-256", prefix="sha256="),),
    media_types=frozenset({"application/json", fields.FORM}),
    max_body=25 * 1024 * 1024,
    kept_headers=frozenset({_EVENT, _DELIVERY}),
)
