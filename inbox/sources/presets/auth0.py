"""Auth0's log streams (Custom Webhook): one request holds one log or several.

From https://auth0.com/docs/customize/log-streams/custom-log-streams (the content formats and the header),
https://auth0.com/docs/customize/log-streams (delivered at least once, attempts) and
https://auth0.com/docs/deploy-monitor/logs/log-event-type-codes (the codes). Auth0 signs nothing: its "Authorization Token"
is the value of the header `Authorization`, which is `auth = { kind = "header", … }` here. The content format has to be
"JSON Array" or "JSON Object"; JSON Lines are not JSON, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.errors import InvalidEvent
from inbox.events.event import Action, Identity, RawRequest
from inbox.events.timestamps import rfc3339
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample

_ACTIONS: Mapping[str, Action] = {
    "sce": "update",  # change of email address
    "scp": "update",  # of password
    "scpn": "update",  # of phone number
    "scu": "update",  # of user name
    "sdu": "delete",
    "ss": "create",
    "sv": "update",  # email address verified
}
"""Codes of logs that change a user; others, such as a login, don't."""


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the events of a body: a list of logs, or one.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: there is no log, or one of them is none.
    """
    if raw.body.lstrip()[:1] == b"{":
        return (_event(raw, fields.json_object(raw.body), None, dedup),)
    return tuple(_event(raw, each, part, dedup) for each, part in fields.listed(raw))


def _event(raw: RawRequest, log: Mapping[str, object], part: bytes | None, dedup: Sequence[str] | None) -> Identity:
    log_id = fields.text_field(log, "log_id", fields.LONGEST_ID)
    data = log.get("data")
    if not isinstance(data, Mapping):
        raise InvalidEvent("data must be an object", field="data")
    code = fields.text_field(data, "type", fields.LONGEST_TYPE)
    kind, identifier = fields.entity("user", data.get("user_id"))
    return Identity(
        entity_type=kind,
        entity_id=identifier,
        event_type=code,
        action=_ACTIONS.get(code, "other"),
        occurred_ns=fields.time_field(data, "date", raw.received_at),
        key_parts=fields.key_of(log, dedup, log_id),
        event_id=log_id,
        part=part,
    )


def sample(_kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make a request with one log about a user."""
    log_id = f"sample-{identifier}-{at:%Y%m%d%H%M%S}"
    data = {"date": rfc3339(at, "milliseconds"), "type": event_type, "log_id": log_id, "user_id": identifier}
    return Sample(msgspec.json.encode([{"log_id": log_id, "data": data}]))


PRESET = Preset(
    name="auth0",
    read=read,
    has_own_time=True,
    sample=sample,
    max_body=4 * 1024 * 1024,  # no limit is documented
    starter='auth = { kind = "header", name = "Authorization", secrets = ["env:{variable}"] }',
    docs=PresetDocs(
        title="Auth0 (log streams)",
        event_id="`log_id` of each log",
        entity="the `user` by `data.user_id`",
        event_type="the code in `data.type`: `ss`",
        time="`data.date`",
        same_event="the id",
        sends="again until it succeeds, three times at once; pauses the stream after seven days of failures",
        shown_at="the Authorization Token of the stream: Monitoring, Streams",
        unchecked="the form of a list of logs",
    ),
)
