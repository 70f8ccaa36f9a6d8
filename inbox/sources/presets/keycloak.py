"""Keycloak's events, as the extension `keycloak-events` of Phase Two sends them; Keycloak itself sends no webhooks.

From https://github.com/p2-inc/keycloak-events: `README.md` (both senders, their retries) and
`HttpSenderEventListenerProvider.java` (the signature is the HMAC-SHA256 of the body in hex; the payload is
`ExtendedAdminEvent.java`). `uid` is made once for each webhook and event, and kept in retries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Action, Identity, RawRequest
from inbox.events.timestamps import to_nanoseconds
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample

_OPERATIONS: Mapping[str, Action] = {"CREATE": "create", "DELETE": "delete", "UPDATE": "update"}
_ACCESS: Mapping[str, Action] = {
    "access.DELETE_ACCOUNT": "delete",
    "access.REGISTER": "create",
    "access.UPDATE_CREDENTIAL": "update",
    "access.UPDATE_EMAIL": "update",
    "access.UPDATE_PASSWORD": "update",
    "access.UPDATE_PROFILE": "update",
    "access.VERIFY_EMAIL": "update",
}
"""Events of users that change the user; others, such as a login, don't."""


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `uid`, `type` or `time` is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    event_id = fields.text_field(payload, "uid", fields.LONGEST_ID)
    event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE)
    path = payload.get("resourcePath")
    failed = payload.get("error") is not None
    if isinstance(path, str) and path:  # users/4f5…, or users/4f5…/role-mappings/realm, which changes the user
        thing, _, rest = path.partition("/")
        identifier, _, below = rest.partition("/")
        found = fields.entity(thing, identifier)
        action: Action = _OPERATIONS.get(str(payload.get("operationType")), "other")
        action = "update" if below and action != "other" else action
    else:
        found = fields.entity("users", fields.member(payload, "authDetails", "userId"))
        action = _ACCESS.get(event_type, "other")
    return (
        Identity(
            entity_type=found[0],
            entity_id=found[1],
            event_type=event_type,
            action="other" if failed else action,
            occurred_ns=fields.epoch_field(payload, "time", raw.received_at, per_second=1000),
            key_parts=fields.key_of(payload, dedup, event_id),
            event_id=event_id,
        ),
    )


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make an event of an administrator's: `kind` is the first part of a path, such as `users`."""
    event = {
        "uid": f"sample-{identifier}-{at:%Y%m%d%H%M%S}",
        "time": to_nanoseconds(at) // 1_000_000,
        "type": f"admin.{event_type}",
        "operationType": event_type.rpartition("-")[2],
        "resourcePath": f"{kind}/{identifier}",
    }
    return Sample(msgspec.json.encode(event))


PRESET = Preset(
    name="keycloak",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(Signature(header="X-Keycloak-Signature"),),
    docs=PresetDocs(
        title="Keycloak (events extension)",
        event_id="`uid`",
        entity="the first two parts of `resourcePath`: `users/4f5…`; without it the user `authDetails.userId`",
        event_type="`type`: `admin.USER-UPDATE`, `access.LOGIN`",
        time="`time`",
        same_event="the id",
        sends="again for 15 minutes, unless configured otherwise; wants a 2xx",
        shown_at="the webhook's secret, or sharedSecret of the event listener ext-event-http",
    ),
)
