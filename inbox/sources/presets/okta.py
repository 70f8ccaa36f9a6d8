"""Okta's event hooks, with one or more events in each request.

From https://developer.okta.com/docs/concepts/event-hooks/ and
https://developer.okta.com/docs/reference/api/event-hooks/. Okta signs nothing: it sends a header configured with the
hook, usually `Authorization`, so configure `auth = { kind = "header", … }`. The header is the only proof, so give each
hook its own URL.

Before sending events, Okta verifies the URL by a GET with `X-Okta-Verification-Challenge`, whose value it expects back.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inbox.events.event import Action, Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Handshake, HandshakeResponse, Mac, Preset, json_sample

_CHALLENGE = "x-okta-verification-challenge"
_LONGEST_CHALLENGE = 1000

_TARGETS: Mapping[str, str] = {"application": "AppInstance", "group": "UserGroup", "user": "User"}
"""Type of the main target by kind of event; an event has several targets in any order, such as a user and a group."""

_ACTIONS: Mapping[str, Action] = {
    "group.lifecycle.create": "create",
    "group.lifecycle.delete": "delete",
    "group.profile.update": "update",
    "group.user_membership.add": "update",
    "group.user_membership.remove": "update",
    "user.account.update_primary_email": "update",
    "user.account.update_profile": "update",
    "user.account.update_secondary_email": "update",
    "user.lifecycle.activate": "update",
    "user.lifecycle.create": "create",
    "user.lifecycle.deactivate": "update",
    "user.lifecycle.delete.completed": "delete",
    "user.lifecycle.reactivate": "update",
    "user.lifecycle.suspend": "update",
    "user.lifecycle.unsuspend": "update",
}
"""Events that change a user or group, unlike sign-ins and others."""


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "eventType", fields.LONGEST_TYPE)
    target = _target(event, event_type)
    succeeded = fields.member(event, "outcome", "result") in {None, "SUCCESS"}
    return Identity(
        *fields.entity(fields.member(target, "type"), fields.member(target, "id")),
        event_type=event_type,
        action=_ACTIONS.get(event_type, "other") if succeeded else "other",
        occurred_ns=fields.time_field(event, "published", raw.received_at),
        key_has_time=True,
        event_id=fields.text_field(event, "uuid", fields.LONGEST_ID),
    )


def _target(event: fields.Payload, event_type: str) -> object:
    """Return the target whose type begins the event type, otherwise the first target, otherwise the actor."""
    targets = event.get("target")
    if not isinstance(targets, list) or not targets:
        return event.get("actor")
    wanted = _TARGETS.get(event_type.partition(".")[0])
    return next((target for target in targets if fields.member(target, "type") == wanted), targets[0])


def greet(raw: RawRequest, _mac: Mac) -> HandshakeResponse:
    """Return the challenge's value."""
    challenge = fields.header_field(raw, _CHALLENGE, _LONGEST_CHALLENGE)
    return HandshakeResponse(200, body=msgspec.json.encode({"verification": challenge}))


_SAMPLE = {
    "uuid": "{unique}",
    "eventType": "{type}",
    "published": "{time}",
    "target": [{"type": "{kind}", "id": "{id}"}],
}

PRESET = Preset(
    title="Okta (event hooks)",
    shown_at="the Authentication secret of the event hook: Workflow, Event Hooks, in the Admin Console",
    read=fields.make_list_reader(_event, "data", "events"),
    has_own_time=True,
    sample=json_sample({"data": {"events": [_SAMPLE]}}),
    max_body=4 * 1024 * 1024,  # no limit is documented, and a refused batch is not sent again
    answers_empty=True,
    handshake=Handshake(
        method="GET",
        header=_CHALLENGE,
        answer=greet,
        docs='GET with `X-Okta-Verification-Challenge`: `{"verification": …}` with its value comes back',
    ),
    starter='auth = { kind = "header", name = "Authorization", secrets = ["env:{variable}"] }',
)
