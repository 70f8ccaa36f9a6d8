"""Auth0's log streams (Custom Webhook), with one or more logs in each request.

From https://auth0.com/docs/customize/log-streams/custom-log-streams (the content formats and the header),
https://auth0.com/docs/customize/log-streams (delivered at least once, attempts) and
https://auth0.com/docs/deploy-monitor/logs/log-event-type-codes (the codes). Auth0 signs nothing: its "Authorization
Token" is the value of the header `Authorization`, so configure `auth = { kind = "header", … }`. The content format must
be "JSON Array" or "JSON Object"; JSON Lines is rejected.
"""

from __future__ import annotations

from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_ACTIONS = fields.actions(create=("ss",), update=("sce", "scp", "scpn", "scu", "sv"), delete=("sdu",))
"""Codes of logs that change a user, unlike logins and others."""


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the events of a body, which is one log or a list of them: see `Read`."""
    is_one = raw.body.lstrip()[:1] == b"{"
    return (fields.make_object_reader if is_one else fields.make_list_reader)(_event)(raw, dedup)


def _event(raw: RawRequest, log: fields.Payload) -> Identity:
    data = fields.object_field(log, "data")
    code = fields.text_field(data, "type", fields.LONGEST_TYPE)
    return Identity(
        *fields.entity("user", data.get("user_id")),
        event_type=code,
        action=_ACTIONS.get(code, "other"),
        occurred_ns=fields.time_field(data, "date", raw.received_at),
        event_id=fields.text_field(log, "log_id", fields.LONGEST_ID),
    )


PRESET = Preset(
    title="Auth0 (log streams)",
    shown_at="the Authorization Token of the stream: Monitoring, Streams",
    read=read,
    has_own_time=True,
    sample=json_sample([{"log_id": "{unique}", "data": {"date": "{time}", "type": "{type}", "user_id": "{id}"}}]),
    max_body=4 * 1024 * 1024,  # no limit is documented
    starter='auth = { kind = "header", name = "Authorization", secrets = ["env:{variable}"] }',
)
