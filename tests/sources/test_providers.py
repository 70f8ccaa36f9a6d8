"""Events that presets read in requests from the providers' own documentation."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from inbox.config.sources import EventFields, NoAuth, Source
from inbox.errors import InvalidEvent
from inbox.events.event import Identity
from inbox.events.timestamps import parse_rfc3339, to_nanoseconds
from inbox.sources import PRESETS, preset_of
from tests.sources.presenting import NOW, a_request

ARRIVAL = to_nanoseconds(NOW)
JSON = {"Content-Type": "application/json"}


def read(preset: str, payload: object, **headers: str) -> tuple[Identity, ...]:
    given = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return PRESETS[preset].read(a_request(preset, json.dumps(payload).encode(), given), None)


def told(identity: Identity) -> tuple[str | None, str | None, str, str]:
    return identity.entity_type, identity.entity_id, identity.event_type, identity.action


REPOSITORY = {"repository": {"id": 186853002, "full_name": "Codertocat/Hello-World"}}


@pytest.mark.parametrize(
    ("event", "payload", "expected"),
    [
        ("issues", {"action": "opened", "issue": {"id": 444500041}}, ("issue", "444500041", "issues.opened", "create")),
        (
            "issue_comment",
            {"action": "edited", "issue": {"id": 1}, "comment": {"id": 7}},
            ("issue_comment", "7", "issue_comment.edited", "update"),
        ),
        ("push", {"ref": "refs/heads/x"}, ("repository", "186853002", "push", "other")),
        (
            "membership",
            {"action": "removed", "member": {"id": 1}, "team": {"id": 2}},
            ("team", "2", "membership.removed", "delete"),
        ),
        (
            "code_scanning_alert",
            {"action": "fixed", "alert": {"number": 3}},
            ("repository", "186853002", "code_scanning_alert.fixed", "other"),
        ),
        ("ping", {"zen": "Keep it logically awesome.", "hook_id": 1}, ("repository", "186853002", "ping", "other")),
    ],
)
def test_github(event: str, payload: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    (identity,) = read("github", {**payload, **REPOSITORY}, X_GitHub_Event=event, X_GitHub_Delivery="72d3162e")
    assert told(identity) == expected
    assert (identity.key_parts, identity.event_id) == (("72d3162e",), "72d3162e")
    assert identity.occurred_ns == ARRIVAL


def test_github_as_a_form_and_without_its_headers() -> None:
    form = a_request(
        "github",
        b"payload=%7B%22action%22%3A%22created%22%2C%22organization%22%3A%7B%22id%22%3A5%7D%7D",
        {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-GitHub-Event": "team",
            "X-GitHub-Delivery": "1",
        },
    )
    (identity,) = PRESETS["github"].read(form, None)
    assert told(identity) == ("organization", "5", "team.created", "create")
    with pytest.raises(InvalidEvent, match="x-github-event is missing"):
        read("github", {})


def test_stripe_with_a_snapshot_and_thin() -> None:
    (snapshot,) = read(
        "stripe",
        {
            "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy",
            "object": "event",
            "created": 1_686_089_970,
            "data": {"object": {"id": "seti_1NG8Du2eZvKYlo2C9XMqbR0x", "object": "setup_intent"}},
            "type": "setup_intent.created",
        },
    )
    assert told(snapshot) == ("setup_intent", "seti_1NG8Du2eZvKYlo2C9XMqbR0x", "setup_intent.created", "create")
    assert snapshot.occurred_ns == 1_686_089_970 * 10**9
    thin = {
        "id": "evt_test_65R9Ijk8dKEYZcXeRWn16R9A7j1FSQ3w3TGDPLLGSM4CW0",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2024-09-26T17:46:22.134Z",
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    }
    (identity,) = read("stripe", thin)
    assert told(identity) == ("billing.meter", "mtr_1", "v1.billing.meter.error_report_triggered", "other")
    assert identity.occurred_ns == parse_rfc3339("2024-09-26T17:46:22.134Z")
    connect = {"id": "evt_2", "type": "coupon.updated", "created": 1_686_089_970, "account": "acct_1"}
    (shared,) = read("stripe", {**connect, "data": {"object": {"id": "SUMMER", "object": "coupon"}}})
    assert shared.entity_id == "acct_1/SUMMER", "merchants choose such ids themselves"
    (without,) = read("stripe", {**thin, "related_object": None})
    assert told(without)[:2] == (None, None)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"type": "message", "subtype": "channel_join", "user": "U1", "channel": "C1"},
            ("channel", "C1", "message.channel_join", "other"),
        ),
        ({"type": "user_change", "user": {"id": "U2"}}, ("user", "U2", "user_change", "update")),
        ({"type": "team_join", "user": {"id": "U3"}}, ("user", "U3", "team_join", "other")),
        ({"type": "channel_rename", "channel": {"id": "C2"}}, ("channel", "C2", "channel_rename", "update")),
        ({"type": "channel_deleted", "channel": "C3"}, ("channel", "C3", "channel_deleted", "delete")),
        (
            {"type": "reaction_added", "item": {"channel": "C4", "ts": "1"}},
            ("channel", "C4", "reaction_added", "create"),
        ),
        ({"type": "file_shared", "file_id": "F1"}, ("file", "F1", "file_shared", "other")),
        ({"type": "app_uninstalled"}, ("team", "T1", "app_uninstalled", "other")),
        ({"type": "link_shared"}, (None, None, "link_shared", "other")),
    ],
)
def test_slack(event: dict[str, Any], expected: tuple[str | None, str | None, str, str]) -> None:
    envelope = {"type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event_time": 1_664_222_685}
    (identity,) = read("slack", {**envelope, "event": event})
    assert told(identity) == expected
    assert (identity.key_parts, identity.occurred_ns) == (("Ev1",), 1_664_222_685 * 10**9)


def test_slack_beyond_events() -> None:
    (limited,) = read("slack", {"type": "app_rate_limited", "team_id": "T1", "minute_rate_limited": 1518467820})
    assert told(limited) == (None, None, "app_rate_limited", "other")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    (command,) = PRESETS["slack"].read(a_request("slack", b"command=%2Fx&trigger_id=13345224609.8534", form), None)
    assert (command.event_type, command.event_id) == ("slash_command", "13345224609.8534")
    interaction = b"payload=%7B%22type%22%3A%22block_actions%22%2C%22trigger_id%22%3A%221.2%22%7D"
    (pressed,) = PRESETS["slack"].read(a_request("slack", interaction, form), None)
    assert (pressed.event_type, pressed.event_id) == ("block_actions", "1.2")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            {"object_kind": "issue", "object_attributes": {"id": 301, "action": "open"}, "project": {"id": 1}},
            ("issue", "301", "issue.open", "create"),
        ),
        ({"object_kind": "push", "project_id": 15, "ref": "refs/heads/master"}, ("project", "15", "push", "other")),
        ({"object_kind": "build", "build_id": 1977, "project_id": 380}, ("build", "1977", "build", "other")),
        ({"object_kind": "release", "id": 1, "action": "create"}, ("release", "1", "release.create", "create")),
        (
            {"event_name": "user_create", "user_id": 41, "email": "js@gitlabhq.com"},
            ("user", "41", "user_create", "create"),
        ),
        ({"event_name": "key_destroy", "id": 4, "username": "root"}, ("key", "4", "key_destroy", "delete")),
        ({"event_name": "project_destroy", "project_id": 74}, ("project", "74", "project_destroy", "delete")),
        (
            {"object_kind": "merge_request", "object_attributes": {"id": 99, "action": "merge"}},
            ("merge_request", "99", "merge_request.merge", "update"),
        ),
    ],
)
def test_gitlab(payload: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    (identity,) = read("gitlab", payload, Idempotency_Key="908a6d9e")
    assert told(identity) == expected
    assert identity.key_parts == ("908a6d9e",)
    ((older,), (again,)) = (read("gitlab", payload), read("gitlab", payload))
    assert older.key_parts == again.key_parts, "before 17.4 the body tells"
    assert older.event_id is None


def test_shopify_with_both_spellings_of_its_headers() -> None:
    headers = {
        "X_Shopify_Topic": "orders/cancelled",
        "X_Shopify_Webhook_Id": "b54557e4",
        "X_Shopify_Triggered_At": "2023-03-29T18:00:27.877041743Z",
    }
    (identity,) = read("shopify", {"id": 820982911946154508}, **headers)
    assert told(identity) == ("orders", "820982911946154508", "orders/cancelled", "other")
    assert identity.occurred_ns == parse_rfc3339("2023-03-29T18:00:27.877041743Z")
    newer = {"shopify_topic": "Product", "shopify_action": "update", "shopify_webhook_id": "w"}
    (identity,) = read("shopify", {"id": 9554194432293}, **newer)
    assert told(identity) == ("Product", "9554194432293", "Product/update", "update")
    assert identity.occurred_ns == ARRIVAL


MEMBERSHIP = {
    "uuid": "6c5775f9-f9a3-11ed-8d5b-c305421bade6",
    "published": "2023-05-23T19:53:01.101Z",
    "eventType": "group.user_membership.remove",
    "actor": {"id": "00u1", "type": "User"},
    "outcome": {"result": "SUCCESS"},
    "target": [{"id": "00u2", "type": "User"}, {"id": "00g1", "type": "UserGroup"}],
}


def test_okta_tells_of_each_event_by_itself() -> None:
    session = {
        "uuid": "2",
        "published": "2023-05-23T19:53:02Z",
        "eventType": "user.session.start",
        "actor": MEMBERSHIP["actor"],
    }
    failed = {
        **MEMBERSHIP,
        "uuid": "3",
        "eventType": "user.lifecycle.create",
        "outcome": {"result": "FAILURE"},
    }
    envelope = {"eventType": "com.okta.event_hook", "eventId": "7725f197", "eventTime": "2023-05-23T20:33:08.822Z"}
    found = read("okta", {**envelope, "data": {"events": [MEMBERSHIP, session, failed], "more": 1.10}})
    assert [told(identity) for identity in found] == [
        ("UserGroup", "00g1", "group.user_membership.remove", "update"),
        ("User", "00u1", "user.session.start", "other"),
        ("User", "00u2", "user.lifecycle.create", "other"),
    ]
    assert [json.loads(identity.part or b"") for identity in found] == [
        {**envelope, "data": {"events": [event], "more": 1.10}} for event in (MEMBERSHIP, session, failed)
    ]
    (alone,) = read("okta", {**envelope, "data": {"events": [MEMBERSHIP]}})
    assert alone.part is None, "one event is stored byte for byte"


@pytest.mark.parametrize("events", [None, [], {}, ["x"], [{}], [MEMBERSHIP, {}], [MEMBERSHIP] * 1001])
def test_what_is_no_list_of_events_is_refused_whole(events: object) -> None:
    with pytest.raises(InvalidEvent):
        read("okta", {"data": {"events": events}})


def test_a_batch_of_cloudevents_keeps_the_bytes_of_each() -> None:
    body = b'[ {"specversion":"1.0","id":"1","source":"/s","type":"a.b.created","data":1.10} ,'
    body += b'{"specversion": "1.0", "id": "2", "source": "/s", "type": "a.b.deleted", "subject": "x"}]'
    raw = a_request("cloudevents", body, {"Content-Type": "application/cloudevents-batch+json; charset=UTF-8"})
    first, second = PRESETS["cloudevents"].read(raw, None)
    assert first.part == b'{"specversion":"1.0","id":"1","source":"/s","type":"a.b.created","data":1.10}'
    assert told(second) == ("a.b", "x", "a.b.deleted", "delete")
    empty = a_request("cloudevents", b"[]", raw.headers)
    assert PRESETS["cloudevents"].read(empty, None) == ()


FIELDS = EventFields(
    type='headers."x-acme-event"',
    id="body.event_id",
    entity_type="'ORDER'",
    entity_id="body.order.id",
    time="body.at",
    time_unit="ms",
    actions={"order.updated": "update"},
)


def custom(fields: EventFields, payload: object, **headers: str) -> tuple[Identity, ...]:
    source = Source(name="acme", preset="custom", auth=NoAuth(), event=fields)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return preset_of(source).read(a_request("acme", json.dumps(payload).encode(), {**JSON, **given}), None)


def test_a_custom_source_reads_what_its_expressions_find() -> None:
    payload = {"event_id": 17, "order": {"id": 42}, "at": 1_767_225_600_123}
    (identity,) = custom(FIELDS, payload, X_Acme_Event="order.updated")
    assert told(identity) == ("ORDER", "42", "order.updated", "update")
    assert (identity.key_parts, identity.occurred_ns) == (("17",), 1_767_225_600_123 * 10**6)
    (without,) = custom(FIELDS, {**payload, "order": None}, X_Acme_Event="order.updated")
    assert told(without)[:2] == (None, None)


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
def test_what_an_expression_does_not_find_is_named(payload: object, field: str) -> None:
    with pytest.raises(InvalidEvent) as raised:
        custom(EventFields(type="body.type", id="body.event_id", time="body.at", time_unit="ms"), payload)
    assert raised.value.field == field


def keys_of(fields: EventFields, *payloads: object) -> list[tuple[str, ...]]:
    return [identity.key_parts for payload in payloads for identity in custom(fields, payload)]


def test_items_of_a_custom_source_that_say_the_same_in_different_bodies_are_different_events() -> None:
    fields = EventFields(type="item.type", items="body.events", entity_type="'C'", entity_id="body.customer")
    one, other = ({"customer": number, "events": [{"type": "updated"}]} for number in (1, 2))
    assert len({*keys_of(fields, one, other)}) == 2
    assert keys_of(fields, one) == keys_of(fields, one), "but a repeat is one"


def test_items_that_share_an_id_are_told_apart_and_a_repeat_of_the_request_is_one() -> None:
    fields = EventFields(type="item.type", items="body.events", id="body.delivery")
    body = {"delivery": "d1", "events": [{"type": "a"}, {"type": "b"}, {"type": "a"}]}
    keys = keys_of(fields, body)
    assert len({*keys}) == 2
    assert keys == keys_of(fields, body)


def test_the_same_body_without_an_id_is_another_event_later() -> None:
    fields = EventFields(type="body.type")
    source = Source(name="acme", preset="custom", auth=NoAuth(), event=fields)
    first, soon, later = (
        preset_of(source).read(a_request("acme", b'{"type": "t"}', JSON, NOW + timedelta(minutes=minutes)), None)
        for minutes in (0, 2, 6)
    )
    assert first[0].key_parts == soon[0].key_parts
    assert first[0].key_parts != later[0].key_parts


def test_a_custom_source_keeps_the_headers_that_it_reads_and_no_secret() -> None:
    fields = EventFields(type='headers."x-acme-event"', id="join('-', [headers.\"x-id\", headers.authorization])")
    source = Source(name="acme", preset="custom", auth=NoAuth(), event=fields)
    assert preset_of(source).kept_headers == {"x-acme-event", "x-id"}


def test_a_custom_source_takes_several_events_and_an_expression_that_fails_is_refused() -> None:
    fields = EventFields(type="item.what", items="body.orders", entity_type="'ORDER'", entity_id="item.order")
    first, second = custom(fields, {"orders": [{"what": "created", "order": 1}, {"what": "changed", "order": "b"}]})
    assert (told(first), told(second)) == (("ORDER", "1", "created", "other"), ("ORDER", "b", "changed", "other"))
    assert first.part == b'{"what":"created","order":1}'
    assert first.key_parts != second.key_parts
    wrong: list[object] = [{"orders": 1}, {}, []]
    for payload in wrong:
        with pytest.raises(InvalidEvent, match="items"):
            custom(fields, payload)
    with pytest.raises(InvalidEvent, match="can't be evaluated"):
        custom(EventFields(type="abs(body.x)"), {"x": "no number"})
    with pytest.raises(InvalidEvent, match="can't be evaluated"):
        custom(EventFields(type="to_string(floor(to_number(body.n)))"), {"n": "1e999"})
