"""Trivore ID (the Trivore Identity Service, formerly onePortal), with both of its payload formats.

- Classic: `{"id": "IDNUMBER1234", "entityType": "USER", "eventType": "UPDATE", "timestamp": "2019-01-01T00:00:00Z"}`,
  the example of the archived page "Webhook (HTTP)". `id` is the id of the entity, not of the event.
- Typed: `{"id": "…", "type": "USER_EDIT", "time": "…"}`, the typical fields and codes of
  https://trivoreid.com/docs/developer-guide/webhook. That page lists the codes below and refers to the Webhook editor
  of the Management UI for the full list, so unknown codes are accepted, with the action `other`.

Other fields are ignored. A body with any field of the classic format other than `id` is read as classic, ignoring
`type` and `time`.

Neither page documents a signature or a secret. The sender authenticates by a header, HTTP Basic or a URL token, which
an operator configures at the provider. Payloads have no event id: the key is the event's time, entity and type, as one
edit of a user may raise several types in the same second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inbox.errors import InvalidEvent
from inbox.events.event import Action, Identity, RawRequest
from inbox.sources.base import Preset, json_sample
from inbox.sources.fields import LONGEST_ID, LONGEST_TYPE, dedup_part, json_object, text_field, time_field

_CLASSIC_FIELDS = frozenset({"entityType", "eventType", "timestamp"})
_TIME_FIELDS = frozenset({"timestamp", "time"})

_ACTIONS: Mapping[str, Action] = {"CREATE": "create", "EDIT": "update", "UPDATE": "update", "DELETE": "delete"}
"""Actions documented for users and groups, used for every other entity type too."""

_CHANGES_OF_A_USER = frozenset(
    {
        "ACTIVITY_UPDATED",
        "ADDRESS_CHANGE",
        "CONSENT_UPDATED",
        "EMAIL_VERIFIED",
        "LEGALINFO_CHANGE",
        "MOBILE_VERIFIED",
        "PNS_TOKEN_CHANGE",
    }
)
"""The other documented codes, without `USER_`; all of them mean that a user's data has changed."""


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the event of a body. `dedup` names payload fields; `timestamp` and `time` both mean the event's time.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: a field is missing, of the wrong type, too long, or out of range; the error names it.
    """
    payload = json_object(raw.body)
    entity_id = text_field(payload, "id", LONGEST_ID)
    if "type" in payload and _CLASSIC_FIELDS.isdisjoint(payload):
        event_type = text_field(payload, "type", LONGEST_TYPE)
        entity_type, _, change = event_type.partition("_")
        if not entity_type:
            raise InvalidEvent("type must begin with the type of an entity, such as USER_EDIT", field="type")
        time = "time"
    else:
        entity_type = text_field(payload, "entityType", LONGEST_TYPE)
        event_type = change = text_field(payload, "eventType", LONGEST_TYPE)
        time = "timestamp"
    occurred_ns = time_field(payload, time, raw.received_at)
    key_parts: tuple[str, ...] = (entity_id, entity_type, event_type)
    if dedup is not None:
        key_parts = tuple(dedup_part(payload, field) for field in dedup if field not in _TIME_FIELDS)
    has_time = dedup is None or not _TIME_FIELDS.isdisjoint(dedup)
    action = get_action(entity_type, change)
    return (Identity(entity_type, entity_id, event_type, action, occurred_ns, key_parts, has_time),)


def get_action(entity_type: str, change: str) -> Action:
    """Return the action of a classic `eventType`, or of a typed code without its entity type."""
    if entity_type == "USER" and change in _CHANGES_OF_A_USER:
        return "update"
    return _ACTIONS.get(change, "other")


PRESET = Preset(
    title="Trivore ID",
    shown_at="the header that you configure with the webhook in Trivore ID",
    read=read,
    has_own_time=True,
    sample=json_sample({"id": "{id}", "entityType": "{kind}", "eventType": "{type}", "timestamp": "{time}"}),
    starter='auth = { kind = "header", name = "X-Webhook-Token", secrets = ["env:{variable}"] }',
)
