"""Google's push notifications of channels: Calendar, Drive, Directory and Reports.

From https://developers.google.com/workspace/drive/api/guides/push,
https://developers.google.com/workspace/calendar/api/guides/push and
https://developers.google.com/workspace/admin/directory/v1/guides/push: headers describe the event, and most bodies are
empty. Google signs nothing: it sends the channel's `token` as `X-Goog-Channel-Token`, so configure `auth = { kind =
"header", … }`. The first message of a channel has the state `sync`.

Messages are numbered per channel. A channel renewed under its old id may repeat the old numbers, so the key includes
the channel's expiry, which is the same in all its messages.
"""

from __future__ import annotations

from collections.abc import Mapping

from inbox.events import strict_json
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_LONGEST_NUMBER = 20
_CHANNEL, _NUMBER, _STATE, _RESOURCE = (
    f"x-goog-{name}" for name in ("channel-id", "message-number", "resource-state", "resource-id")
)
_EXPIRES = "x-goog-channel-expiration"
_ACTIONS = fields.actions(
    create=("add", "undelete", "untrash"),
    update=("change", "exists", "makeAdmin", "update"),
    delete=("delete", "not_exists", "remove", "trash"),
)


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the event of a request: see `Read`. Most bodies are empty."""
    payload = strict_json.parse(raw.body) if raw.body.strip() else None
    expires = fields.entity_id(fields.printable(raw.headers.get(_EXPIRES, "")))
    channel = fields.header_field(raw, _CHANNEL, fields.LONGEST_ID)
    number = fields.header_field(raw, _NUMBER, _LONGEST_NUMBER)
    state = fields.header_field(raw, _STATE, fields.LONGEST_TYPE)
    identity = Identity(
        *fields.entity("resource", fields.printable(raw.headers.get(_RESOURCE, ""))),
        event_type=state,
        action=_ACTIONS.get(state, "other"),
        occurred_ns=fields.arrival(raw),
        key_parts=(channel, number, *([expires] if expires else [])),
    )
    return (fields.with_key(identity, payload if isinstance(payload, Mapping) else {}, dedup),)


_SAMPLE = {_CHANNEL: "sample", _NUMBER: "{s}", _STATE: "{type}", _RESOURCE: "{id}"}

PRESET = Preset(
    title="Google Workspace (push channels)",
    shown_at="the token with which you created the channel",
    read=read,
    sample=json_sample({}, _SAMPLE),
    media_types=frozenset(),
    kept_headers=frozenset({_CHANNEL, _NUMBER, _STATE, _RESOURCE, "x-goog-changed", _EXPIRES, "x-goog-resource-uri"}),
    starter='auth = { kind = "header", name = "X-Goog-Channel-Token", secrets = ["env:{variable}"] }',
)
