"""Events that further presets read in requests as their providers' documentation has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inbox.errors import InvalidEvent, Unreadable, UnsupportedType
from inbox.events.event import Identity
from inbox.events.timestamps import parse_rfc3339
from inbox.sources import PRESETS
from inbox.sources.fields import MOST_EVENTS
from tests.sources.presenting import a_request

Told = tuple[str | None, str | None, str, str]
UID = {"uid": "4f1d", "time": 1_767_225_600_123, "realmId": "r", "authDetails": {"userId": "u1"}}
ZEN = {"id": "2b24ef10", "time": "2025-07-04T05:33:18Z", "zendesk_event_version": "2022-06-20"}
HUB = {"eventId": 100, "subscriptionId": 25, "occurredAt": 1_564_113_600_000, "attemptNumber": 0}
NOTION = {"id": "367cba44", "timestamp": "2024-12-05T23:57:05.379Z", "attempt_number": 1}
SQUARE = {"event_id": "13b867cf", "created_at": "2020-02-06T21:27:34.308Z"}
SIGNED = {"generatedDateTime": "2025-01-01T00:00:00.1234567Z", "retryCount": 0}
DISCORD = {"version": 1, "application_id": "1234560123453231555", "type": 1}


def read(preset: str, payload: object, **headers: str) -> tuple[Identity, ...]:
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return PRESETS[preset].read(a_request(preset, json.dumps(payload).encode(), given), None)


def told(identity: Identity) -> Told:
    return identity.entity_type, identity.entity_id, identity.event_type, identity.action


def of_discord(event_type: str, data: object, at: str = "2024-10-18T14:42:53.064834") -> dict[str, object]:
    return {**DISCORD, "event": {"type": event_type, "timestamp": at, "data": data}}


ONE: list[tuple[str, Any, dict[str, str], Told]] = [
    (
        "discord",
        of_discord("APPLICATION_AUTHORIZED", {"user": {"id": "7"}}),
        {},
        ("user", "7", "APPLICATION_AUTHORIZED", "other"),
    ),
    (
        "discord",
        of_discord("ENTITLEMENT_CREATE", {"id": "1234505980407808808", "user_id": "1"}),
        {},
        ("entitlement", "1234505980407808808", "ENTITLEMENT_CREATE", "create"),
    ),
    (
        "discord",
        of_discord("LOBBY_MESSAGE_DELETE", {"id": "14"}, "2024-10-18T14:42:53+00:00"),
        {},
        ("message", "14", "LOBBY_MESSAGE_DELETE", "delete"),
    ),
    (
        "docusign",
        {**SIGNED, "event": "envelope-completed", "data": {"envelopeId": "e1", "accountId": "a"}},
        {},
        ("envelope", "e1", "envelope-completed", "update"),
    ),
    (
        "docusign",
        {**SIGNED, "event": "template-deleted", "data": {"templateId": "t1"}},
        {},
        ("template", "t1", "template-deleted", "delete"),
    ),
    (
        "hubspot",
        [{**HUB, "subscriptionType": "contact.propertyChange", "objectId": 123}],
        {},
        ("contact", "123", "contact.propertyChange", "update"),
    ),
    (
        "hubspot",
        [{**HUB, "subscriptionType": "object.creation", "objectTypeId": "0-1", "objectId": 5}],
        {},
        ("0-1", "5", "object.creation", "create"),
    ),
    (
        "hubspot",
        [{**HUB, "subscriptionType": "contact.associationChange", "fromObjectId": 9}],
        {},
        ("contact", "9", "contact.associationChange", "update"),
    ),
    (
        "jira",
        {
            "timestamp": 1_525_698_237_764,
            "webhookEvent": "jira:issue_updated",
            "issue": {"id": "99291", "key": "JRA-1"},
        },
        {"X_Atlassian_Webhook_Identifier": "i"},
        ("issue", "99291", "jira:issue_updated", "update"),
    ),
    (
        "jira",
        {"timestamp": 1_525_698_237_764, "webhookEvent": "user_deleted", "user": {"accountId": "5b1:0"}},
        {"X_Atlassian_Webhook_Identifier": "i"},
        ("user", "5b1:0", "user_deleted", "delete"),
    ),
    (
        "jira",
        {"timestamp": 1_525_698_237_764, "webhookEvent": "issuelink_created", "issueLink": {"id": 10}},
        {},
        ("issuelink", "10", "issuelink_created", "create"),
    ),
    (
        "keycloak",
        {**UID, "type": "admin.USER-CREATE", "operationType": "CREATE", "resourcePath": "users/9f2"},
        {},
        ("users", "9f2", "admin.USER-CREATE", "create"),
    ),
    (
        "keycloak",
        {
            **UID,
            "type": "admin.REALM_ROLE_MAPPING-DELETE",
            "operationType": "DELETE",
            "resourcePath": "users/9f2/role-mappings/realm",
        },
        {},
        ("users", "9f2", "admin.REALM_ROLE_MAPPING-DELETE", "update"),
    ),
    ("keycloak", {**UID, "type": "access.LOGIN"}, {}, ("users", "u1", "access.LOGIN", "other")),
    (
        "keycloak",
        {**UID, "type": "access.UPDATE_PROFILE", "error": "invalid"},
        {},
        ("users", "u1", "access.UPDATE_PROFILE", "other"),
    ),
    (
        "linear",
        {"action": "update", "type": "Issue", "createdAt": "2020-01-23T12:53:18.084Z", "data": {"id": "2174add1"}},
        {"Linear_Delivery": "234d1a4e"},
        ("Issue", "2174add1", "Issue.update", "update"),
    ),
    (
        "linear",
        {"action": "revoked", "type": "OAuthApp", "webhookTimestamp": 1_579_784_004_024},
        {"Linear_Delivery": "234d1a4e"},
        (None, None, "OAuthApp.revoked", "other"),
    ),
    (
        "msgraph",
        {
            "value": [
                {
                    "changeType": "updated",
                    "resource": "Users/84bd8158",
                    "resourceData": {"@odata.type": "#Microsoft.Graph.User", "id": "84bd8158"},
                }
            ]
        },
        {},
        ("user", "84bd8158", "user.updated", "update"),
    ),
    (
        "msgraph",
        {"value": [{"id": "n1", "changeType": "created", "resource": "Users/ddf/Messages/AAMk="}]},
        {},
        ("messages", "AAMk=", "messages.created", "create"),
    ),
    (
        "msgraph",
        {"value": [{"lifecycleEvent": "subscriptionRemoved", "subscriptionId": "7f10"}]},
        {},
        ("subscription", "7f10", "subscription.subscriptionRemoved", "other"),
    ),
    (
        "notion",
        {**NOTION, "type": "page.properties_updated", "entity": {"id": "153104cd", "type": "page"}},
        {},
        ("page", "153104cd", "page.properties_updated", "update"),
    ),
    (
        "notion",
        {**NOTION, "type": "page.undeleted", "entity": {"id": "153104cd", "type": "page"}},
        {},
        ("page", "153104cd", "page.undeleted", "create"),
    ),
    ("notion", {"verification_token": "secret_tMrl"}, {}, (None, None, "verification_token", "other")),
    (
        "square",
        {**SQUARE, "type": "customer.deleted", "data": {"type": "customer", "id": "J", "deleted": True}},
        {},
        ("customer", "J", "customer.deleted", "delete"),
    ),
    (
        "zendesk",
        {**ZEN, "type": "zen:event-type:user.active_changed", "subject": "zen:user:6596848315901"},
        {},
        ("user", "6596848315901", "zen:event-type:user.active_changed", "update"),
    ),
    (
        "zendesk",
        {**ZEN, "type": "zen:event-type:ticket.comment_added", "subject": "zen:ticket:35436"},
        {},
        ("ticket", "35436", "zen:event-type:ticket.comment_added", "update"),
    ),
    (
        "zendesk",
        {**ZEN, "type": "zen:event-type:ticket.soft_deleted", "subject": "zen:ticket:35436"},
        {},
        ("ticket", "35436", "zen:event-type:ticket.soft_deleted", "delete"),
    ),
    (
        "zoom",
        {
            "event": "meeting.started",
            "event_ts": 1_626_230_691_572,
            "payload": {"account_id": "A", "object": {"id": "6962400003", "uuid": "4118UHIiRCAAAtBlDkcVyw=="}},
        },
        {},
        ("meeting", "6962400003", "meeting.started", "other"),
    ),
    (
        "zoom",
        {"event": "user.created", "event_ts": 1_626_230_691_572, "payload": {"object": {"uuid": "u=="}}},
        {},
        ("user", "u==", "user.created", "create"),
    ),
    (
        "auth0",
        [{"log_id": "9002", "data": {"date": "2020-01-29T17:26:50.193Z", "type": "ss", "user_id": "auth0|5f"}}],
        {},
        ("user", "auth0|5f", "ss", "create"),
    ),
    (
        "auth0",
        {"log_id": "9003", "data": {"date": "2020-01-29T17:26:50.193Z", "type": "sapi"}},
        {},
        (None, None, "sapi", "other"),
    ),
    (
        "sendgrid",
        [
            {
                "sg_event_id": "e",
                "sg_message_id": "14c5d75ce93.dfd.64b469.0",
                "event": "open",
                "timestamp": 1_513_299_569,
            }
        ],
        {},
        ("message", "14c5d75ce93", "open", "update"),
    ),
    (
        "google",
        {},
        {
            "X_Goog_Channel_ID": "4ba78bf0",
            "X_Goog_Message_Number": "10",
            "X_Goog_Resource_State": "update",
            "X_Goog_Resource_ID": "ret987df98743md8g",
        },
        ("resource", "ret987df98743md8g", "update", "update"),
    ),
]


@pytest.mark.parametrize(("preset", "payload", "headers", "expected"), ONE, ids=[f"{n}-{e[2]}" for n, *_, e in ONE])
def test_one_event(preset: str, payload: object, headers: dict[str, str], expected: Told) -> None:
    (identity,) = read(preset, payload, **headers)
    assert told(identity) == expected
    assert identity.part is None, "one event is stored byte for byte"


LISTS = [("auth0", ()), ("hubspot", ()), ("sendgrid", ()), ("msgraph", ("value",))]


def wrapped(path: tuple[str, ...], events: object) -> object:
    return {path[0]: events, "more": 1.10} if path else events


@pytest.mark.parametrize(("preset", "path"), LISTS)
def test_of_several_events_each_is_stored_with_what_stands_around_it(preset: str, path: tuple[str, ...]) -> None:
    sample = PRESETS[preset].sample
    assert sample is not None
    made = [json.loads(sample("contact", each, "created", a_request("x", b"", {}).received_at).body) for each in "abc"]
    events = [(each[path[0]] if path else each)[0] for each in made]
    found = read(preset, wrapped(path, events))
    assert [each.entity_id for each in found] == ["a", "b", "c"]
    assert [json.loads(each.part or b"") for each in found] == [wrapped(path, [event]) for event in events]
    assert len({each.key_parts for each in found} | {each.part for each in found}) >= 3


@pytest.mark.parametrize("events", [None, [], {}, ["x"], [{}], [{}] * (MOST_EVENTS + 1)])
@pytest.mark.parametrize(("preset", "path"), LISTS)
def test_what_is_no_list_of_events_is_refused_whole(preset: str, path: tuple[str, ...], events: object) -> None:
    with pytest.raises((InvalidEvent, Unreadable)):
        read(preset, wrapped(path, events))


def test_a_retry_of_hubspot_or_docusign_counts_its_attempts_and_is_the_same_event() -> None:
    hub = {**HUB, "subscriptionType": "contact.creation", "objectId": 1}
    signed = {**SIGNED, "event": "envelope-sent", "data": {"envelopeId": "e1"}}
    for preset, first, second in (
        ("hubspot", [hub], [{**hub, "attemptNumber": 3}]),
        ("docusign", signed, {**signed, "retryCount": 2}),
    ):
        keys = {(each.key_parts, each.occurred_ns) for payload in (first, second) for each in read(preset, payload)}
        assert len(keys) == 1


def keys(preset: str, *payloads: object) -> int:
    """Count of the different dedup keys of the payloads' events."""
    return len({(each.key_parts, each.occurred_ns) for payload in payloads for each in read(preset, payload)})


def test_events_of_hubspot_with_one_id_are_told_apart_by_account_object_and_property() -> None:
    """An `eventId` is not unique, and one app hears of all accounts that have installed it."""
    one = {**HUB, "subscriptionType": "contact.propertyChange", "objectId": 1, "portalId": 1, "propertyName": "email"}
    others = [{**one, name: "2"} for name in ("portalId", "objectId", "propertyName", "subscriptionId", "eventId")]
    assert keys("hubspot", [one], others) == 1 + len(others)
    linked = {**HUB, "subscriptionType": "contact.associationChange", "fromObjectId": 1, "toObjectId": 2}
    assert keys("hubspot", [linked, {**linked, "toObjectId": 3}]) == 2


def test_a_channel_of_google_that_is_renewed_under_its_id_counts_anew() -> None:
    headers = {"X_Goog_Channel_ID": "c", "X_Goog_Message_Number": "1", "X_Goog_Resource_State": "sync"}
    found = [
        read("google", {}, **headers, X_Goog_Channel_Expiration=f"Tue, {day} Nov 2013 01:13:52 GMT")[0].key_parts
        for day in (19, 19, 20)
    ]
    assert found[0] == found[1] != found[2]


def test_messages_of_docusign_about_nothing_that_is_known_are_told_apart_by_their_bodies() -> None:
    signed = {**SIGNED, "event": "click-agreed"}
    assert keys("docusign", *({**signed, "data": {"agreementId": each}} for each in "ab")) == 2


def test_events_of_zoom_and_discord_without_an_id_are_told_apart_by_their_bodies() -> None:
    joined = {"event": "meeting.participant_joined", "event_ts": 1_626_230_691_572}
    bodies = [{**joined, "payload": {"object": {"id": "1", "participant": {"user_id": n}}}} for n in "ab"]
    assert len({read("zoom", body)[0].key_parts for body in bodies}) == 2
    assert (
        len({read("discord", of_discord("APPLICATION_AUTHORIZED", {"user": {"id": n}}))[0].key_parts for n in "ab"})
        == 2
    )


def test_a_time_of_discord_without_an_offset_is_utc() -> None:
    (identity,) = read("discord", of_discord("APPLICATION_AUTHORIZED", {}))
    assert identity.occurred_ns == parse_rfc3339("2024-10-18T14:42:53.064834Z")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("MessageSid=SM1&SmsSid=SM1&MessageStatus=delivered", ("message", "SM1", "message.delivered", "update")),
        ("SmsSid=SM2&MessageSid=SM2&SmsStatus=received", ("message", "SM2", "message.received", "create")),
        ("CallSid=CA1&CallStatus=completed", ("call", "CA1", "call.completed", "update")),
        (
            "CallSid=CA1&RecordingSid=RE1&RecordingStatus=completed",
            ("recording", "RE1", "recording.completed", "update"),
        ),
        (
            "ConversationSid=CH1&EventType=onMessageAdded",
            ("conversation", "CH1", "conversation.onMessageAdded", "update"),
        ),
        ("AccountSid=AC1&EventType=alarm", (None, None, "alarm", "other")),
        ("", (None, None, "webhook", "other")),
    ],
)
def test_twilio(form: str, expected: Told) -> None:
    raw = a_request("twilio", form.encode(), {"Content-Type": "application/x-www-form-urlencoded"})
    (identity,) = PRESETS["twilio"].read(raw, None)
    assert told(identity) == expected


def test_twilio_takes_nothing_but_forms_as_nothing_else_would_be_signed() -> None:
    with pytest.raises(UnsupportedType):
        PRESETS["twilio"].check_type(a_request("twilio", b"{}", {"Content-Type": "application/json"}))


def test_a_message_of_google_may_have_no_body() -> None:
    headers = {"X-Goog-Channel-ID": "c", "X-Goog-Message-Number": "1", "X-Goog-Resource-State": "sync"}
    (identity,) = PRESETS["google"].read(a_request("google", b"", headers), None)
    assert told(identity) == (None, None, "sync", "other")
    assert identity.key_parts == ("c", "1")
    with pytest.raises(InvalidEvent, match="x-goog-message-number is missing"):
        read("google", {}, X_Goog_Channel_ID="c")
