"""Microsoft Graph's change notifications, including those of Entra ID, and lifecycle notifications.

From https://learn.microsoft.com/en-us/graph/change-notifications-delivery-webhooks (the validation, the responses,
retries for four hours) and https://learn.microsoft.com/en-us/graph/api/resources/changenotification (the payload).
Graph signs nothing: each notification repeats the subscription's `clientState`, so list the client states as `secrets`.

Graph validates the URL with a POST without a `clientState`. The source therefore needs an `auth` of kind `url_token`
too, so that strangers can't discover it by a validation. Either all notifications of a body have a valid `clientState`,
or the request is rejected. Encrypted resource data is stored unchanged.

Most notifications have neither an `id` nor a time, so two changes of one user give identical bytes. They don't count as
duplicates, which would lose the second change. A notification without an `id` that Graph resends becomes a second
event.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from urllib.parse import parse_qsl

import msgspec

from inbox.config.sources import Source
from inbox.errors import InvalidEvent
from inbox.events import timestamps
from inbox.events.event import Identity, RawRequest
from inbox.sources import base, fields

_VALIDATION = "validationToken"
_MOST_STATES = 5
"""Maximum different client states in one body; while a secret is rotated, subscriptions have the old and the new one."""


class _Notification(msgspec.Struct):
    clientState: str = ""  # noqa: N815  # Graph's name


class _Notifications(msgspec.Struct):
    value: list[_Notification]


class ClientState(base.KeyedProof):
    """Proof that each notification of a body has one of the secrets as its client state."""

    passes = 1

    def __init__(self, _source: Source, secrets: base.Revealed) -> None:
        super().__init__((secret, base.compute_digest(text)) for secret, text in secrets)
        self.kind = ClientState

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """See base.Proof. A validation has no notifications, whatever its body."""
        states = client_states(raw.body)
        known = [self.is_known(state.encode("utf-8", "surrogatepass"), now) for state in states]
        if (states and all(known)) or is_validation(raw):
            return None
        none = "no secret that is valid now is the clientState of each notification"
        return none if states else "no clientState is there"


def client_states(body: bytes) -> list[str]:
    """Return the distinct client states of the notifications; empty if they are unreadable or too many."""
    notifications = fields.decode_as(_Notifications, body)
    states = set() if notifications is None else {each.clientState for each in notifications.value}
    return sorted(states) if len(states) <= _MOST_STATES else []


def is_validation(raw: RawRequest) -> bool:
    """Return whether a request is a validation; it is then never read as notifications."""
    return raw.method == "POST" and f"{_VALIDATION}=" in raw.query


def greet(raw: RawRequest, _mac: base.Mac) -> base.HandshakeResponse | None:
    """Return the token of a validation as plain text."""
    if not is_validation(raw):
        return None
    tokens = [value for name, value in parse_qsl(raw.query, errors="replace") if name == _VALIDATION]
    if len(tokens) != 1:
        raise InvalidEvent("validationToken must occur exactly once", field=_VALIDATION)
    headers = {"X-Content-Type-Options": "nosniff"}
    return base.HandshakeResponse(200, headers, tokens[0].encode(), "text/plain; charset=utf-8")


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    lifecycle = event.get("lifecycleEvent") is not None
    word = fields.text_field(event, "lifecycleEvent" if lifecycle else "changeType", fields.LONGEST_WORD)
    kind, identifier = fields.entity("subscription", event.get("subscriptionId")) if lifecycle else _resource(event)
    event_id = fields.entity_id(event.get("id"))
    # without an id, only equal notifications in one request are duplicates
    unique = timestamps.format_fixed_width(fields.arrival(raw)), hashlib.sha256(msgspec.json.encode(event)).hexdigest()
    return Identity(
        kind,
        identifier,
        event_type=fields.entity_type(f"{kind or 'resource'}.{word}") or word,
        action="other" if lifecycle else fields.classify_action(word),
        occurred_ns=fields.arrival(raw),
        key_parts=() if event_id else unique,
        event_id=event_id,
    )


def _resource(event: fields.Payload) -> fields.Entity:
    """Return the resource from its data, or from the last two parts of its path: `Users/ddfcd489/Messages/AAMkAD`."""
    data, path = event.get("resourceData"), event.get("resource")
    *_, things, last = ["", "", *(path if isinstance(path, str) else "").strip("/").split("/")]
    odata = fields.member(data, "@odata.type")  # #Microsoft.Graph.User
    name = odata.rpartition(".")[2] if isinstance(odata, str) else things
    return fields.entity(name[:1].lower() + name[1:], fields.member(data, "id") or last)


_DATA = {"@odata.type": "#Microsoft.Graph.{kind}", "id": "{id}"}
_SAMPLE = {"id": "{unique}", "changeType": "{last}", "resource": "{kind}/{id}", "resourceData": _DATA}

PRESET = base.Preset(
    title="Microsoft Graph, Entra ID",
    shown_at="the clientState with which you created the subscription",
    read=fields.make_list_reader(_event, "value"),
    sample=base.json_sample({"value": [_SAMPLE]}),
    prover=ClientState,
    needs=frozenset({"auth"}),
    max_body=4 * 1024 * 1024,  # no limit is documented; the body may contain encrypted resource data
    status=202,
    answers_empty=True,
    handshake=base.Handshake(answer=greet, docs="POST with `?validationToken=…`: the token comes back as plain text"),
    starter="""\
secrets = ["env:{variable}"]
[sources.msgraph.auth]  # of the notificationUrl: /webhooks/msgraph/TOKEN
kind = "url_token"
secrets = ["env:{token}"]""",
)
