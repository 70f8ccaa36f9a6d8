"""Events that presets read from requests in the providers' own documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from inbox.config.sources import EventFields, NoAuth, Source
from inbox.errors import InvalidEvent, Unreadable, UnsupportedType
from inbox.events.event import Identity
from inbox.events.timestamps import parse_rfc3339, to_nanoseconds
from inbox.sources import PRESETS, build_preset
from inbox.sources.fields import FORM, MOST_EVENTS
from tests.sources.presenting import NOW, make_request

ARRIVAL = to_nanoseconds(NOW)
JSON = {"Content-Type": "application/json"}


def read_bytes(preset: str, body: bytes, media: str = FORM, **headers: str) -> tuple[Identity, ...]:
    """Read a request; header names have `_` for `-`."""
    given = {"Content-Type": media, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return PRESETS[preset].read(make_request(preset, body, given), None)


def read(preset: str, payload: object, **headers: str) -> tuple[Identity, ...]:
    return read_bytes(preset, json.dumps(payload).encode(), JSON["Content-Type"], **headers)


def describe(identity: Identity) -> str:
    """Return entity type and id (or `-`), event type and action, separated by spaces."""
    return f"{identity.entity_type or '-'} {identity.entity_id or '-'} {identity.event_type} {identity.action}"


def count_keys(preset: str, *payloads: object) -> int:
    """Count the different dedup keys of the payloads' events."""
    return len({(each.key_parts, each.occurred_ns) for payload in payloads for each in read(preset, payload)})


# --- one event


def make_github(**payload: object) -> dict[str, object]:
    return {**payload, "repository": {"id": 186853002}}


def make_slack(kind: str, **event: object) -> dict[str, object]:
    return {
        "type": "event_callback",
        "team_id": "T1",
        "event_id": "Ev1",
        "event_time": 1_664_222_685,
        "event": {"type": kind, **event},
    }


def make_discord(kind: str, at: str = "2024-10-18T14:42:53.064834", **data: object) -> dict[str, object]:
    return {"type": 1, "event": {"type": kind, "timestamp": at, "data": data}}


def make_docusign(kind: str, retries: int = 0, **data: object) -> dict[str, object]:
    return {"generatedDateTime": "2025-01-01T00:00:00.1234567Z", "retryCount": retries, "event": kind, "data": data}


def make_hubspot(kind: str, **event: object) -> list[dict[str, object]]:
    return [{"eventId": 100, "occurredAt": 1_564_113_600_000, "attemptNumber": 0, "subscriptionType": kind, **event}]


def make_jira(kind: str, **payload: object) -> dict[str, object]:
    return {"timestamp": 1_525_698_237_764, "webhookEvent": kind, **payload}


def make_keycloak(kind: str, **payload: object) -> dict[str, object]:
    return {"uid": "4f1d", "time": 1_767_225_600_123, "authDetails": {"userId": "u1"}, "type": kind, **payload}


def make_notion(kind: str) -> dict[str, object]:
    return {
        "id": "367cba44",
        "timestamp": "2024-12-05T23:57:05.379Z",
        "type": kind,
        "entity": {"id": "15", "type": "page"},
    }


def make_zendesk(kind: str, subject: str) -> dict[str, object]:
    kind, subject = f"zen:event-type:{kind}", f"zen:{subject}"
    return {"id": "2b24ef10", "time": "2025-07-04T05:33:18Z", "type": kind, "subject": subject}


def make_zoom(kind: str, **found: object) -> dict[str, object]:
    return {"event": kind, "event_ts": 1_626_230_691_572, "payload": {"object": found}}


def make_auth0(kind: str, **data: object) -> dict[str, object]:
    return {"log_id": "9002", "data": {"date": "2020-01-29T17:26:50.193Z", "type": kind, **data}}


DATED = {"createdAt": "2020-01-23T12:53:18.084Z"}
SQUARE = {"event_id": "13b867cf", "created_at": "2020-02-06T21:27:34.308Z"}
SENDGRID = {
    "sg_event_id": "e",
    "sg_message_id": "14c5d75ce93.dfd.64b469.0",
    "event": "open",
    "timestamp": 1_513_299_569,
}
OPEN = {"id": 301, "action": "open"}
GRAPH = {
    "changeType": "updated",
    "resource": "Users/84",
    "resourceData": {"@odata.type": "#Microsoft.Graph.User", "id": "84"},
}
ONE: list[tuple[str, Any, str]] = [
    ("auth0", [make_auth0("ss", user_id="auth0|5f")], "user auth0|5f ss create"),
    ("auth0", make_auth0("sapi"), "- - sapi other"),
    ("discord", make_discord("APPLICATION_AUTHORIZED", user={"id": "7"}), "user 7 APPLICATION_AUTHORIZED other"),
    ("discord", make_discord("ENTITLEMENT_CREATE", id="12", user_id="1"), "entitlement 12 ENTITLEMENT_CREATE create"),
    ("discord", make_discord("LOBBY_MESSAGE_DELETE", id="14"), "message 14 LOBBY_MESSAGE_DELETE delete"),
    ("docusign", make_docusign("envelope-completed", envelopeId="e1"), "envelope e1 envelope-completed update"),
    ("docusign", make_docusign("template-deleted", templateId="t1"), "template t1 template-deleted delete"),
    ("github issues", make_github(action="opened", issue={"id": 44}), "issue 44 issues.opened create"),
    (
        "github issue_comment",
        make_github(action="edited", issue={"id": 1}, comment={"id": 7}),
        "issue_comment 7 issue_comment.edited update",
    ),
    ("github push", make_github(ref="refs/heads/x"), "repository 186853002 push other"),
    ("github membership", make_github(action="removed", team={"id": 2}), "team 2 membership.removed delete"),
    ("github alert", make_github(action="fixed", alert={"number": 3}), "repository 186853002 alert.fixed other"),
    (
        "gitlab",
        {"object_kind": "issue", "object_attributes": OPEN, "project": {"id": 1}},
        "issue 301 issue.open create",
    ),
    ("gitlab", {"object_kind": "push", "project_id": 15}, "project 15 push other"),
    ("gitlab", {"object_kind": "release", "id": 1, "action": "create"}, "release 1 release.create create"),
    ("gitlab", {"event_name": "user_create", "user_id": 41}, "user 41 user_create create"),
    ("gitlab", {"event_name": "key_destroy", "id": 4}, "key 4 key_destroy delete"),
    ("gitlab", {"event_name": "project_destroy", "project_id": 74}, "project 74 project_destroy delete"),
    (
        "gitlab",
        {"object_kind": "merge_request", "object_attributes": {"id": 99, "action": "merge"}},
        "merge_request 99 merge_request.merge update",
    ),
    ("hubspot", make_hubspot("contact.propertyChange", objectId=1), "contact 1 contact.propertyChange update"),
    ("hubspot", make_hubspot("object.creation", objectTypeId="0-1", objectId=5), "0-1 5 object.creation create"),
    (
        "hubspot",
        make_hubspot("contact.associationChange", fromObjectId=9),
        "contact 9 contact.associationChange update",
    ),
    ("jira", make_jira("jira:issue_updated", issue={"id": "99", "key": "J-1"}), "issue 99 jira:issue_updated update"),
    ("jira", make_jira("user_deleted", user={"accountId": "5b1:0"}), "user 5b1:0 user_deleted delete"),
    ("jira", make_jira("issuelink_created", issueLink={"id": 10}), "issuelink 10 issuelink_created create"),
    (
        "keycloak",
        make_keycloak("admin.USER-CREATE", operationType="CREATE", resourcePath="users/9f2"),
        "users 9f2 admin.USER-CREATE create",
    ),
    (
        "keycloak",
        make_keycloak("admin.ROLE-DELETE", operationType="DELETE", resourcePath="users/9f2/role-mappings/realm"),
        "users 9f2 admin.ROLE-DELETE update",
    ),
    ("keycloak", make_keycloak("access.LOGIN"), "users u1 access.LOGIN other"),
    ("keycloak", make_keycloak("access.UPDATE_PROFILE", error="invalid"), "users u1 access.UPDATE_PROFILE other"),
    ("linear", {"action": "update", "type": "Issue", **DATED, "data": {"id": "21"}}, "Issue 21 Issue.update update"),
    (
        "linear",
        {"action": "revoked", "type": "OAuthApp", "webhookTimestamp": 1_579_784_004_024},
        "- - OAuthApp.revoked other",
    ),
    ("msgraph", {"value": [GRAPH]}, "user 84 user.updated update"),
    (
        "msgraph",
        {"value": [{"id": "n1", "changeType": "created", "resource": "Users/ddf/Messages/AAMk="}]},
        "messages AAMk= messages.created create",
    ),
    (
        "msgraph",
        {"value": [{"lifecycleEvent": "subscriptionRemoved", "subscriptionId": "7f10"}]},
        "subscription 7f10 subscription.subscriptionRemoved other",
    ),
    ("notion", make_notion("page.properties_updated"), "page 15 page.properties_updated update"),
    ("notion", make_notion("page.undeleted"), "page 15 page.undeleted create"),
    ("notion", {"verification_token": "secret_tMrl"}, "- - verification_token other"),
    ("sendgrid", [SENDGRID], "message 14c5d75ce93 open update"),
    ("shopify", {"id": 820982911946154508}, "Product 820982911946154508 Product/update update"),
    ("slack", make_slack("message", subtype="channel_join", channel="C1"), "channel C1 message.channel_join other"),
    ("slack", make_slack("user_change", user={"id": "U2"}), "user U2 user_change update"),
    ("slack", make_slack("team_join", user={"id": "U3"}), "user U3 team_join other"),
    ("slack", make_slack("channel_rename", channel={"id": "C2"}), "channel C2 channel_rename update"),
    ("slack", make_slack("channel_deleted", channel="C3"), "channel C3 channel_deleted delete"),
    ("slack", make_slack("reaction_added", item={"channel": "C4", "ts": "1"}), "channel C4 reaction_added create"),
    ("slack", make_slack("file_shared", file_id="F1"), "file F1 file_shared other"),
    ("slack", make_slack("app_uninstalled"), "team T1 app_uninstalled other"),
    ("slack", make_slack("link_shared"), "- - link_shared other"),
    ("slack", {"type": "app_rate_limited", "team_id": "T1", "minute_rate_limited": 1}, "- - app_rate_limited other"),
    (
        "square",
        {**SQUARE, "type": "customer.deleted", "data": {"type": "customer", "id": "J"}},
        "customer J customer.deleted delete",
    ),
    ("zendesk", make_zendesk("user.active_changed", "user:65"), "user 65 zen:event-type:user.active_changed update"),
    (
        "zendesk",
        make_zendesk("ticket.comment_added", "ticket:3"),
        "ticket 3 zen:event-type:ticket.comment_added update",
    ),
    ("zendesk", make_zendesk("ticket.soft_deleted", "ticket:3"), "ticket 3 zen:event-type:ticket.soft_deleted delete"),
    ("zoom", make_zoom("meeting.started", id="69", uuid="4118=="), "meeting 69 meeting.started other"),
    ("zoom", make_zoom("user.created", uuid="u=="), "user u== user.created create"),
]
HEADERS = {
    "github": {"X_GitHub_Delivery": "72d3162e"},
    "jira": {"X_Atlassian_Webhook_Identifier": "i"},
    "linear": {"Linear_Delivery": "234d1a4e"},
    "gitlab": {"Idempotency_Key": "908a6d9e"},
    "shopify": {"shopify_topic": "Product", "shopify_action": "update", "shopify_webhook_id": "w"},
}


@pytest.mark.parametrize(("preset", "payload", "expected"), ONE, ids=[f"{name} {event}" for name, _, event in ONE])
def test_one_event(preset: str, payload: object, expected: str) -> None:
    name, _, event = preset.partition(" ")
    headers = HEADERS.get(name, {}) | ({"X_GitHub_Event": event} if event else {})
    (identity,) = read(name, payload, **headers)
    assert describe(identity) == expected
    assert identity.part is None, "one event is stored byte for byte"
    if name in {"github", "gitlab"}:
        assert (identity.key_parts, identity.occurred_ns) == (tuple(headers.values())[:1], ARRIVAL)


@pytest.mark.parametrize(
    ("preset", "form", "expected"),
    [
        (
            "github",
            "payload=" + quote('{"action": "created", "organization": {"id": 5}}'),
            "organization 5 team.created create",
        ),
        ("slack", "command=%2Fx&trigger_id=13345224609.8534", "- - slash_command other"),
        ("slack", "payload=" + quote('{"type": "block_actions", "trigger_id": "1.2"}'), "- - block_actions other"),
        ("twilio", "MessageSid=SM1&SmsSid=SM1&MessageStatus=delivered", "message SM1 message.delivered update"),
        ("twilio", "SmsSid=SM2&MessageSid=SM2&SmsStatus=received", "message SM2 message.received create"),
        ("twilio", "CallSid=CA1&CallStatus=completed", "call CA1 call.completed update"),
        (
            "twilio",
            "CallSid=CA1&RecordingSid=RE1&RecordingStatus=completed",
            "recording RE1 recording.completed update",
        ),
        (
            "twilio",
            "ConversationSid=CH1&EventType=onMessageAdded",
            "conversation CH1 conversation.onMessageAdded update",
        ),
        ("twilio", "AccountSid=AC1&EventType=alarm", "- - alarm other"),
        ("twilio", "", "- - webhook other"),
    ],
)
def test_one_form(preset: str, form: str, expected: str) -> None:
    (identity,) = read_bytes(preset, form.encode(), X_GitHub_Event="team", X_GitHub_Delivery="1")
    assert describe(identity) == expected
    assert preset != "slack" or identity.event_id in {"13345224609.8534", "1.2"}


def test_an_event_without_its_headers_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="x-github-event is missing"):
        read("github", {})
    with pytest.raises(InvalidEvent, match="x-goog-message-number is missing"):
        read("google", {}, X_Goog_Channel_ID="c")


def test_stripe_with_a_snapshot_and_thin() -> None:
    snapshot = {"id": "evt_1", "created": 1_686_089_970, "type": "setup_intent.created"}
    (identity,) = read("stripe", {**snapshot, "data": {"object": {"id": "seti_1", "object": "setup_intent"}}})
    assert describe(identity) == "setup_intent seti_1 setup_intent.created create"
    assert identity.occurred_ns == 1_686_089_970 * 10**9
    about = {"related_object": {"id": "mtr_1", "type": "billing.meter"}}
    thin = {"id": "evt_2", "object": "v2.core.event", "type": "v1.error", "created": "2024-09-26T17:46:22.134Z"}
    (identity,) = read("stripe", {**thin, **about})
    assert describe(identity) == "billing.meter mtr_1 v1.error other"
    assert identity.occurred_ns == parse_rfc3339("2024-09-26T17:46:22.134Z")
    (without,) = read("stripe", {**thin, "related_object": None})
    assert describe(without) == "- - v1.error other"
    connect = {"id": "evt_2", "type": "coupon.updated", "created": 1_686_089_970, "account": "acct_1"}
    (shared,) = read("stripe", {**connect, "data": {"object": {"id": "SUMMER", "object": "coupon"}}})
    assert shared.entity_id == "acct_1/SUMMER", "merchants choose such ids themselves"


def test_gitlab_before_its_idempotency_keys_is_told_apart_by_its_body() -> None:
    (older,), (again,) = (read("gitlab", {"object_kind": "push"}) for _ in range(2))
    assert (older.key_parts, older.event_id) == (again.key_parts, None)
    assert count_keys("gitlab", {"object_kind": "push"}, {"object_kind": "build"}) == 2


def test_shopify_with_the_older_spelling_of_its_headers() -> None:
    at = "2023-03-29T18:00:27.877041743Z"
    headers = {"X_Shopify_Topic": "orders/cancelled", "X_Shopify_Webhook_Id": "b5", "X_Shopify_Triggered_At": at}
    (identity,) = read("shopify", {"id": 8}, **headers)
    assert describe(identity) == "orders 8 orders/cancelled other"
    assert identity.occurred_ns == parse_rfc3339(at)


def test_a_message_of_google_may_have_no_body_and_a_renewed_channel_counts_anew() -> None:
    sync = {"X_Goog_Channel_ID": "c", "X_Goog_Message_Number": "1", "X_Goog_Resource_State": "sync"}
    (identity,) = read_bytes("google", b"", **sync)
    assert (describe(identity), identity.key_parts) == ("- - sync other", ("c", "1"))
    (update,) = read("google", {}, **{**sync, "X_Goog_Resource_State": "update"}, X_Goog_Resource_ID="ret9")
    assert describe(update) == "resource ret9 update update"
    found = [
        read("google", {}, **sync, X_Goog_Channel_Expiration=f"Tue, {day} Nov 2013 01:13:52 GMT")[0].key_parts
        for day in (19, 19, 20)
    ]
    assert found[0] == found[1] != found[2]


def test_a_retry_of_hubspot_or_docusign_counts_its_attempts_and_is_the_same_event() -> None:
    (hub,) = make_hubspot("contact.creation", objectId=1)
    assert count_keys("hubspot", [hub], [{**hub, "attemptNumber": 3}]) == 1
    assert count_keys("docusign", *(make_docusign("envelope-sent", n, envelopeId="e1") for n in (0, 2))) == 1


def test_events_of_hubspot_with_one_id_are_told_apart_by_account_object_and_property() -> None:
    """An `eventId` is not unique, and one app receives the events of all accounts."""
    (one,) = make_hubspot("contact.propertyChange", objectId=1, portalId=1, propertyName="email", subscriptionId=25)
    others = [{**one, name: "2"} for name in ("portalId", "objectId", "propertyName", "subscriptionId", "eventId")]
    assert count_keys("hubspot", [one], others) == 1 + len(others)
    linked = [make_hubspot("contact.associationChange", fromObjectId=1, toObjectId=n) for n in (2, 3)]
    assert count_keys("hubspot", *linked) == 2


def test_events_without_an_id_are_told_apart_by_their_bodies() -> None:
    assert count_keys("docusign", *(make_docusign("click-agreed", agreementId=each) for each in "ab")) == 2
    assert count_keys("discord", *(make_discord("APPLICATION_AUTHORIZED", user={"id": each}) for each in "ab")) == 2
    joined = [make_zoom("meeting.participant_joined", id="1", participant={"user_id": each}) for each in "ab"]
    assert len({read("zoom", each)[0].key_parts for each in joined}) == 2


def test_a_time_of_discord_without_an_offset_is_utc() -> None:
    (identity,) = read("discord", make_discord("APPLICATION_AUTHORIZED"))
    assert identity.occurred_ns == parse_rfc3339("2024-10-18T14:42:53.064834Z")


def test_twilio_takes_nothing_but_forms_as_nothing_else_would_be_signed() -> None:
    with pytest.raises(UnsupportedType):
        PRESETS["twilio"].check_type(make_request("twilio", b"{}", JSON))


# --- several events in one request


LISTS = [("auth0", ()), ("hubspot", ()), ("sendgrid", ()), ("msgraph", ("value",)), ("okta", ("data", "events"))]


def wrap(path: tuple[str, ...], events: object) -> object:
    return {path[0]: wrap(path[1:], events), "more": 1.10} if path else events


def events_of_sample(preset: str, path: tuple[str, ...]) -> list[object]:
    """Return three events from the samples of the preset."""
    sample, found = PRESETS[preset].sample, []
    assert sample is not None
    for each in "abc":
        made = json.loads(sample("contact", each, "created", NOW).body)
        for member in path:
            made = made[member]
        found.append(made[0])
    return found


@pytest.mark.parametrize(("preset", "path"), LISTS)
def test_of_several_events_each_is_stored_with_what_stands_around_it(preset: str, path: tuple[str, ...]) -> None:
    events = events_of_sample(preset, path)
    found = read(preset, wrap(path, events))
    assert [each.entity_id for each in found] == ["a", "b", "c"]
    assert [json.loads(each.part or b"") for each in found] == [wrap(path, [event]) for event in events]
    assert len({each.key_parts for each in found} | {each.part for each in found}) >= 3


@pytest.mark.parametrize("events", [None, [], {}, ["x"], [{}], [{}] * (MOST_EVENTS + 1)])
@pytest.mark.parametrize(("preset", "path"), LISTS)
def test_a_list_of_anything_but_events_is_refused_whole(preset: str, path: tuple[str, ...], events: object) -> None:
    with pytest.raises((InvalidEvent, Unreadable)):
        read(preset, wrap(path, events))


def test_a_broken_event_or_one_too_many_refuses_the_good_ones_beside_it() -> None:
    (event, *_) = events_of_sample("okta", ("data", "events"))
    for events in ([event, {}], [event] * (MOST_EVENTS + 1)):
        with pytest.raises(InvalidEvent):
            read("okta", wrap(("data", "events"), events))


def test_an_event_of_okta_is_about_its_target_and_does_nothing_where_it_failed() -> None:
    member = {
        "uuid": "6c5775f9",
        "published": "2023-05-23T19:53:01.101Z",
        "eventType": "group.user_membership.remove",
        "actor": {"id": "00u1", "type": "User"},
        "outcome": {"result": "SUCCESS"},
        "target": [{"id": "00u2", "type": "User"}, {"id": "00g1", "type": "UserGroup"}],
    }
    session = {name: member[name] for name in ("uuid", "published", "actor")} | {"eventType": "user.session.start"}
    failed = {**member, "eventType": "user.lifecycle.create", "outcome": {"result": "FAILURE"}}
    assert [describe(each) for each in read("okta", {"data": {"events": [member, session, failed]}})] == [
        "UserGroup 00g1 group.user_membership.remove update",
        "User 00u1 user.session.start other",
        "User 00u2 user.lifecycle.create other",
    ]


# --- CloudEvents


def test_a_batch_of_cloudevents_keeps_the_bytes_of_each() -> None:
    media = "application/cloudevents-batch+json; charset=UTF-8"
    body = b'[ {"specversion":"1.0","id":"1","source":"/s","type":"a.b.created","data":1.10} ,'
    body += b'{"specversion": "1.0", "id": "2", "source": "/s", "type": "a.b.deleted", "subject": "x"}]'
    first, second = read_bytes("cloudevents", body, media)
    assert first.part == b'{"specversion":"1.0","id":"1","source":"/s","type":"a.b.created","data":1.10}'
    assert describe(second) == "a.b x a.b.deleted delete"
    assert read_bytes("cloudevents", b"[]", media) == ()


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
def test_the_library_of_cloudevents_writes_binary_and_structured_events(write: Callable[[CloudEvent], Any]) -> None:
    attributes: dict[str, Any] = {
        "specversion": "1.0", "id": "1234", "source": "/mycontext/sub context €", "type": "com.example.order.updated",
        "subject": "7", "time": datetime(2018, 4, 5, 3, 56, 24, tzinfo=UTC), "datacontenttype": "application/json",
    }  # fmt: skip
    message = write(CloudEvent(attributes=attributes, data={"a": 1}))
    (identity,) = PRESETS["cloudevents"].read(make_request("cloudevents", message.body, message.headers), None)
    assert describe(identity) == "com.example.order 7 com.example.order.updated update"
    assert identity.key_parts == ("/mycontext/sub context €", "1234")
    assert identity.occurred_ns == 1_522_900_584_000_000_000


BINARY = {"ce_specversion": "1.0", "ce_source": "s", "ce_type": "t"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),  # the example of the HTTP binding
        ('"a \\"b\\" c"', 'a "b" c'),
        ("needless%61", "needlessa"),
        ("low%c3%a9r", "lowér"),
        ("once%2520", "once%20"),
    ],
)
def test_headers_of_a_binary_event_are_decoded_once(value: str, expected: str) -> None:
    assert read("cloudevents", 1, **BINARY, ce_id=value)[0].event_id == expected


def test_headers_that_are_no_utf8_are_refused_and_so_is_what_is_no_event() -> None:
    with pytest.raises(InvalidEvent, match="not UTF-8"):
        read("cloudevents", 1, **BINARY, ce_id="%C0%A0")
    with pytest.raises(InvalidEvent, match="specversion"):
        read("cloudevents", 1, **{**BINARY, "ce_specversion": "0.3"}, ce_id="1")
    with pytest.raises(UnsupportedType):
        read("cloudevents", {})


# --- a custom source


def custom(
    fields: EventFields, payload: object, after: timedelta = timedelta(0), **headers: str
) -> tuple[Identity, ...]:
    source = Source(name="acme", preset="custom", auth=NoAuth(), event=fields)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = make_request("acme", json.dumps(payload).encode(), {**JSON, **given}, NOW + after)
    return build_preset(source).read(raw, None)


def test_a_custom_source_reads_what_its_expressions_find() -> None:
    fields = EventFields(
        type='headers."x-acme-event"', id="body.event_id", entity_type="'ORDER'", entity_id="body.order.id",
        time="body.at", time_unit="ms", actions={"order.updated": "update"},
    )  # fmt: skip
    payload = {"event_id": 17, "order": {"id": 42}, "at": 1_767_225_600_123}
    (identity,) = custom(fields, payload, X_Acme_Event="order.updated")
    assert describe(identity) == "ORDER 42 order.updated update"
    assert (identity.key_parts, identity.occurred_ns) == (("17",), 1_767_225_600_123 * 10**6)
    (without,) = custom(fields, {**payload, "order": None}, X_Acme_Event="order.updated")
    assert describe(without) == "- - order.updated update"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"event_id": 1, "at": 1_767_225_600_123}, "type"),
        ({"event_id": None, "at": 1_767_225_600_123, "type": "t"}, "id"),
        ({"event_id": [], "at": 1_767_225_600_123, "type": "t"}, "id"),
        ({"event_id": 1, "at": "2026-01-01T00:00:00Z", "type": "t"}, "time"),
        ({"event_id": 1, "at": 1, "type": "t"}, "time"),
        ([], "type"),
    ],
)
def test_a_field_that_an_expression_does_not_find_is_named(payload: object, field: str) -> None:
    with pytest.raises(InvalidEvent) as raised:
        custom(EventFields(type="body.type", id="body.event_id", time="body.at", time_unit="ms"), payload)
    assert raised.value.field == field


def keys_of(fields: EventFields, *payloads: object) -> list[tuple[str, ...]]:
    return [identity.key_parts for payload in payloads for identity in custom(fields, payload)]


def test_items_of_a_custom_source_are_events_of_their_own_and_a_repeat_of_the_request_is_none() -> None:
    fields = EventFields(type="item.type", items="body.events", entity_type="'C'", entity_id="body.customer")
    one, other = ({"customer": number, "events": [{"type": "updated"}]} for number in (1, 2))
    assert len({*keys_of(fields, one, other)}) == 2, "though both items say the same"
    assert keys_of(fields, one) == keys_of(fields, one)
    (event,) = custom(fields, one)
    assert (describe(event), event.part) == ("C 1 updated other", b'{"type":"updated"}')
    shared = EventFields(type="item.type", items="body.events", id="body.delivery")
    body = {"delivery": "d1", "events": [{"type": "a"}, {"type": "b"}, {"type": "a"}]}
    assert len({*keys_of(shared, body)}) == 2, "items that share an id"
    assert keys_of(shared, body) == keys_of(shared, body)


def test_the_same_body_without_an_id_is_another_event_later() -> None:
    fields = EventFields(type="body.type")
    first, soon, later = (
        custom(fields, {"type": "t"}, timedelta(minutes=minutes))[0].key_parts for minutes in (0, 2, 6)
    )
    assert first == soon != later


def test_a_custom_source_keeps_the_headers_that_it_reads_and_no_secret() -> None:
    fields = EventFields(type='headers."x-acme-event"', id="join('-', [headers.\"x-id\", headers.authorization])")
    source = Source(name="acme", preset="custom", auth=NoAuth(), event=fields)
    assert build_preset(source).kept_headers == {"x-acme-event", "x-id"}


@pytest.mark.parametrize(
    ("fields", "payload", "why"),
    [
        (EventFields(type="item.what", items="body.orders"), {"orders": 1}, "items"),
        (EventFields(type="item.what", items="body.orders"), [], "items"),
        (EventFields(type="abs(body.x)"), {"x": "no number"}, "can't be evaluated"),
        (EventFields(type="to_string(floor(to_number(body.n)))"), {"n": "1e999"}, "can't be evaluated"),
    ],
)
def test_an_expression_that_fails_refuses_the_request(fields: EventFields, payload: object, why: str) -> None:
    with pytest.raises(InvalidEvent, match=why):
        custom(fields, payload)
