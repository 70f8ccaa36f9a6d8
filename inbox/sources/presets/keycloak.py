"""Keycloak's events, as the extension `keycloak-events` of Phase Two sends them; Keycloak itself sends no webhooks.

From https://github.com/p2-inc/keycloak-events: `README.md` (both senders, their retries) and
`HttpSenderEventListenerProvider.java` (the signature is the HMAC-SHA256 of the body in hex; the payload is
`ExtendedAdminEvent.java`). `uid` is unique to each webhook and event, and stays the same in retries.
"""

from __future__ import annotations

from collections.abc import Mapping

from inbox.config.sources import Signature
from inbox.events.event import Action, Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_OPERATIONS: Mapping[str, Action] = {"CREATE": "create", "DELETE": "delete", "UPDATE": "update"}
_ACCESS = fields.actions(
    create=("REGISTER",),
    update=("UPDATE_CREDENTIAL", "UPDATE_EMAIL", "UPDATE_PASSWORD", "UPDATE_PROFILE", "VERIFY_EMAIL"),
    delete=("DELETE_ACCOUNT",),
)
"""User events that change the user, unlike logins and others."""


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "type", fields.LONGEST_TYPE)
    path = event.get("resourcePath")
    if isinstance(path, str) and path:  # users/4f5…, or users/4f5…/role-mappings/realm, which changes the user
        thing, _, rest = path.partition("/")
        identifier, _, below = rest.partition("/")
        found = fields.entity(thing, identifier)
        action = _OPERATIONS.get(str(event.get("operationType")), "other")
        action = "update" if below and action != "other" else action
    else:
        found = fields.entity("users", fields.member(event, "authDetails", "userId"))
        action = _ACCESS.get(event_type.removeprefix("access."), "other")
    return Identity(
        *found,
        event_type=event_type,
        action="other" if event.get("error") is not None else action,
        occurred_ns=fields.epoch_field(event, "time", raw.received_at, per_second=1000),
        event_id=fields.text_field(event, "uid", fields.LONGEST_ID),
    )


_SAMPLE = {"uid": "{unique}", "time": "{ms}", "type": "admin.{type}", "operationType": "{last}"}

PRESET = Preset(
    title="Keycloak (events extension)",
    shown_at="the webhook's secret, or sharedSecret of the event listener ext-event-http",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample({**_SAMPLE, "resourcePath": "{kind}/{id}"}),
    signatures=(Signature(header="X-Keycloak-Signature"),),
)
