"""Trivore ID, Slack messages and Salesforce: how their formats are read and stored."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

import pytest

from inbox.config.sources import NoAuth, Source
from inbox.errors import InvalidEvent, RequestError, Unreadable, UnsupportedType
from inbox.events.event import Identity, RawRequest, dedup_key
from inbox.events.timestamps import parse_rfc3339
from inbox.sources import PRESETS, build_preset, fields
from inbox.sources.presets import salesforce, slack_message, trivore
from tests.helpers.webhooks import mistake
from tests.sources.presenting import NOW, make_request, read, sign_sample

ARRIVED = datetime(2024, 1, 1, tzinfo=UTC)
CLASSIC = {"id": "IDNUMBER1234", "entityType": "USER", "eventType": "UPDATE", "timestamp": "2019-01-01T00:00:00Z"}
TYPED = {"id": "5ba48fdb2f4a4b0b2c3d4e5f", "type": "USER_EDIT", "time": "2019-01-01T00:00:00.708Z"}


def read_bytes(body: bytes, dedup: Sequence[str] | None = None) -> Identity:
    (identity,) = trivore.PRESET.read(RawRequest("trivore", {}, body, ARRIVED), dedup)
    return identity


def read_trivore(payload: object, dedup: Sequence[str] | None = None) -> Identity:
    return read_bytes(json.dumps(payload).encode(), dedup)


def wrong_field(payload: object, dedup: Sequence[str] | None = None) -> str | None:
    with pytest.raises(InvalidEvent) as caught:
        read_trivore(payload, dedup)
    assert caught.value.field is not None
    assert caught.value.field in caught.value.detail
    return caught.value.field


def test_the_example_of_the_archived_page_is_read() -> None:
    assert read_trivore(CLASSIC) == Identity(
        entity_type="USER",
        entity_id="IDNUMBER1234",
        event_type="UPDATE",
        action="update",
        occurred_ns=1_546_300_800_000_000_000,
        key_parts=("IDNUMBER1234", "USER", "UPDATE"),
        key_has_time=True,
    )


def test_the_typed_form_is_read_and_its_code_stays_as_it_is() -> None:
    identity = read_trivore(TYPED)
    assert (identity.entity_type, identity.event_type, identity.action) == ("USER", "USER_EDIT", "update")
    assert identity.occurred_ns == 1_546_300_800_708_000_000
    assert identity.key_parts == ("5ba48fdb2f4a4b0b2c3d4e5f", "USER", "USER_EDIT")
    assert dedup_key(identity).startswith("2019-01-01T00:00:00.708000000Z|")


UPDATES = (
    *("USER_EDIT", "USER_ACTIVITY_UPDATED", "USER_EMAIL_VERIFIED", "USER_LEGALINFO_CHANGE", "USER_MOBILE_VERIFIED"),
    *("USER_ADDRESS_CHANGE", "USER_CONSENT_UPDATED", "USER_PNS_TOKEN_CHANGE", "GROUP_EDIT"),
)
CODES = {
    **dict.fromkeys(UPDATES, "update"),
    **dict.fromkeys(("USER_CREATE", "GROUP_CREATE"), "create"),
    **dict.fromkeys(("USER_DELETE", "GROUP_DELETE"), "delete"),
    **dict.fromkeys(("GROUP_EMAIL_VERIFIED", "USER_LOGIN", "USER_edit", "PING", "CREATE"), "other"),
}


@pytest.mark.parametrize(("code", "action"), CODES.items())
def test_every_documented_code_has_its_action_and_others_are_other(code: str, action: str) -> None:
    identity = read_trivore(TYPED | {"type": code})
    assert (identity.entity_type, identity.event_type, identity.action) == (code.partition("_")[0], code, action)


def test_other_fields_are_ignored_and_those_of_both_forms_are_read_as_classic() -> None:
    assert read_trivore(TYPED | CLASSIC) == read_trivore(CLASSIC)
    assert wrong_field(TYPED | {"entityType": "USER"}) == "eventType"
    assert read_trivore(CLASSIC | {"note": ["\x00", None], "time": 5}) == read_trivore(CLASSIC)
    assert read_trivore(TYPED | {"data": {"id": 1}}) == read_trivore(TYPED)


@pytest.mark.parametrize("payload", [None, True, 1, 1.5, "x", [], [CLASSIC]])
def test_a_body_that_is_no_object_is_no_event(payload: object) -> None:
    assert wrong_field(payload) == "body"


@pytest.mark.parametrize(("payload", "field"), [(p, f) for p in (CLASSIC, TYPED) for f in p])
def test_a_field_that_is_missing_or_of_another_type_or_length_is_named(payload: dict[str, str], field: str) -> None:
    values: list[object] = [None, 1, True, 1.5, {}, [], ["x"], "", "x\x00y", "x" * 256]
    for value in values:
        assert wrong_field(payload | {field: value}) == field, value
    if field != "type":  # it distinguishes the two forms
        assert wrong_field({name: value for name, value in payload.items() if name != field}) == field


def test_the_longest_values_are_taken() -> None:
    longest = CLASSIC | {"id": "i" * 255, "entityType": "e" * 100, "eventType": "v" * 100}
    assert read_trivore(longest).entity_id == "i" * 255
    assert wrong_field(longest | {"entityType": "e" * 101}) == "entityType"
    assert wrong_field(TYPED | {"type": "U_" + "e" * 99}) == "type"


def test_a_time_has_an_offset_exists_and_lies_between_2000_and_24_hours_after_arrival() -> None:
    first, last, moment = datetime(2000, 1, 1, tzinfo=UTC), ARRIVED + timedelta(hours=24), timedelta(microseconds=1)
    assert read_trivore(CLASSIC | {"timestamp": first.isoformat()}).occurred_ns == 946_684_800_000_000_000
    assert read_trivore(CLASSIC | {"timestamp": last.isoformat()}).occurred_ns == 1_704_153_600_000_000_000
    outside = ((first - moment).isoformat(), (last + moment).isoformat(), "0001-01-01T00:00:00+23:59")
    for text in (*outside, "2019-01-01T00:00:00", "2019-01-01", "1546300800", "now", "2019-02-30T00:00:00Z"):
        assert wrong_field(CLASSIC | {"timestamp": text}) == "timestamp", text
        assert wrong_field(TYPED | {"time": text}) == "time", text


# --- dedup keys


def test_spellings_of_one_instant_are_one_event_and_another_type_is_another() -> None:
    elsewhere = CLASSIC | {"timestamp": "2019-01-01T02:00:00.000+02:00"}
    assert dedup_key(read_trivore(elsewhere)) == dedup_key(read_trivore(CLASSIC))
    assert dedup_key(read_trivore(CLASSIC | {"eventType": "DELETE"})) != dedup_key(read_trivore(CLASSIC))
    assert dedup_key(read_trivore(CLASSIC | {"entityType": "GROUP"})) != dedup_key(read_trivore(CLASSIC))


def test_a_source_can_choose_the_fields_and_the_time_comes_first_if_it_is_one() -> None:
    for dedup in (["timestamp", "id"], ["id", "timestamp"], ["id", "time"]):
        assert read_trivore(CLASSIC, dedup).key_parts == ("IDNUMBER1234",)
        assert dedup_key(read_trivore(CLASSIC, dedup)).startswith("2019-01-01T00:00:00.000000000Z|")
        assert dedup_key(read_trivore(TYPED, dedup)).startswith("2019-01-01T00:00:00.708000000Z|")
    assert dedup_key(read_trivore(CLASSIC | {"version": 7, "part": "a|b"}, ["version", "part"])) == r"7|a\|b"


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, "", "\x00"])
def test_a_field_that_the_key_needs_must_be_a_text_or_a_whole_number(value: object) -> None:
    assert wrong_field(CLASSIC | {"version": value}, ["id", "version"]) == "version"
    assert wrong_field(CLASSIC, ["id", "version"]) == "version"


def test_equal_times_of_different_entities_do_not_share_a_key_whatever_their_ids() -> None:
    one, other = CLASSIC | {"id": "a|USER", "entityType": "X"}, CLASSIC | {"id": "a", "entityType": "USER|X"}
    assert dedup_key(read_trivore(one)) != dedup_key(read_trivore(other))


# --- content types, which all presets share


@pytest.mark.parametrize(
    ("content_type", "encoding", "is_taken"),
    [
        ("application/json", None, True),
        ("APPLICATION/JSON", "Identity", True),
        (" application/json ;charset=UTF-8", None, True),
        ('application/json; Charset="utf-8"; profile=x', None, True),
        ("application/json;", None, True),
        (None, None, False),
        ("", None, False),
        ("text/plain", None, False),
        ("application/x-www-form-urlencoded", None, False),
        ("application/json, application/json", None, False),
        ("application/json; charset=utf-7", None, False),
        ("application/json; charset=utf-8; charset=latin-1", None, False),
        ("application/json; charset", None, False),
        ("application/json", "gzip", False),
        ("application/json", "", False),
    ],
)
def test_only_json_in_utf_8_is_accepted(content_type: str | None, encoding: str | None, is_taken: bool) -> None:
    given = {"content-type": content_type, "content-encoding": encoding}
    raw = RawRequest("s", {name: value for name, value in given.items() if value is not None}, b"", ARRIVED)
    with nullcontext() if is_taken else pytest.raises(UnsupportedType):
        trivore.PRESET.check_type(raw)


# --- Slack messages


SENT_AT = datetime(2026, 1, 1, 12, 2, 30, tzinfo=UTC)
PATTERN = r"(?P<type>[a-z]+) (?P<id>\d+) was (?P<event_type>\w+)"
AS_FORM = {"content-type": "application/x-www-form-urlencoded"}
AS_JSON = {"content-type": "application/json"}


def a_chat(pattern: str | None = PATTERN, entity_type: str | None = None) -> Source:
    return Source(name="chat", preset="slack-message", auth=NoAuth(), pattern=pattern, entity_type=entity_type)


def read_chat_raw(raw: RawRequest, source: Source | None = None, dedup: Sequence[str] | None = None) -> Identity:
    (identity,) = build_preset(source or a_chat()).read(raw, dedup)
    return identity


def raw_of(message: object, at: datetime = SENT_AT, **headers: str) -> RawRequest:
    find_entity = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawRequest("chat", {**AS_JSON, **find_entity}, json.dumps(message).encode(), at)


def read_chat(message: object, source: Source | None = None, dedup: Sequence[str] | None = None) -> Identity:
    return read_chat_raw(raw_of(message), source, dedup)


def find_entity(message: object, source: Source | None = None) -> tuple[str | None, str | None, str]:
    identity = read_chat(message, source)
    return identity.entity_type, identity.entity_id, identity.event_type


def test_the_pattern_finds_the_entity_in_the_text() -> None:
    identity = read_chat({"text": "The user 42 was updated by Ada"})
    assert (identity.entity_type, identity.entity_id, identity.event_type) == ("user", "42", "updated")
    assert (identity.action, identity.event_id) == ("update", None)
    assert identity.occurred_ns == int(SENT_AT.timestamp()) * 1_000_000_000


NAMED = {"text": "user 42 was updated"}


@pytest.mark.parametrize(
    "message",
    [
        {"attachments": [NAMED]},
        {"text": "News", "attachments": [{"color": "good"}, {"fallback": NAMED["text"]}]},
        {"attachments": [{"fields": [{"title": "What", "value": NAMED["text"], "short": True}]}]},
        {"blocks": [{"type": "section", "text": NAMED}]},
        {"blocks": [{"type": "section", "fields": [NAMED]}]},
        {"text": None, "blocks": [{"type": "rich_text", "elements": [{"type": "section", "elements": [NAMED]}]}]},
        {"attachments": [{"blocks": [{"type": "header", "text": NAMED}]}]},
        {"attachments": [{"text": "user 2 was created"}], **NAMED},
    ],
)
def test_the_pattern_is_searched_in_all_texts_of_a_message_and_in_its_own_first(message: object) -> None:
    assert find_entity(message) == ("user", "42", "updated")


def test_text_is_searched_as_a_reader_sees_it() -> None:
    link = a_chat(r"<https://crm/users/(?P<id>[^|]+)\|", "USER")
    assert find_entity({"text": "See <https://crm/users/42|Ada &amp; Co>"}, link) == ("USER", "42", "message")
    assert find_entity({"text": "A &amp;lt; B &lt;7&gt;"}, a_chat(r"B <(?P<id>\d)>", "USER"))[1] == "7"
    assert find_entity({"text": "A &amp;lt; B"}, a_chat(r"A &(?P<id>lt); B", "USER"))[1] == "lt"


@pytest.mark.parametrize(
    ("pattern", "entity_type", "expected"),
    [
        (r"user (?P<id>\d+)", "USER", ("USER", "42", "message")),
        (r"((?P<type>group) )?(?P<id>\d+)", "USER", ("USER", "42", "message")),
        (r"(?P<type>user) (?P<id>\d+)", "GROUP", ("user", "42", "message")),
        (r"((?P<type>group) )?(?P<id>\d+)", None, (None, None, "message")),
        (r"(?P<id>\d*)x?", "USER", (None, None, "message")),
        (r"team (?P<id>\d+)", "TEAM", (None, None, "message")),
        (None, None, (None, None, "message")),
    ],
)
def test_a_missing_entity_is_configured_or_unknown(
    pattern: str | None, entity_type: str | None, expected: tuple[str | None, str | None, str]
) -> None:
    assert find_entity({"text": "The user 42 was updated"}, a_chat(pattern, entity_type)) == expected


def test_an_id_that_can_not_be_stored_is_no_entity_and_the_message_is_kept() -> None:
    for pattern, text in (
        (r"(?P<type>user) (?P<id>.+)", "user " + "4" * 256),
        (r"(?P<type>\w+) (?P<id>\d+)", "u" * 101 + " 42"),
        (r"(?P<type>user) (?P<id>\d+) (?P<event_type>\w+)", "user 42 " + "e" * 101),
        (r"(?P<type>user) (?P<id>.+)", "user 4\x002"),
    ):
        assert find_entity({"text": text}, a_chat(pattern)) == (None, None, "message")


def test_usual_words_have_their_actions() -> None:
    actions = {"created": "create", "Updated": "update", "changed": "update", "deleted": "delete", "seen": "other"}
    assert {word: read_chat({"text": f"user 42 was {word}"}).action for word in actions} == actions


def test_no_more_than_256_kib_are_searched() -> None:
    far = "." * slack_message.SEARCHED
    assert find_entity({"text": far, "blocks": [{"text": "user 42 was updated"}]}) == (None, None, "message")
    assert find_entity({"text": far[20:], "blocks": [{"text": "user 42 was updated"}]})[1] == "42"
    assert find_entity({"text": far[19:], "blocks": [{"text": "user 42 was updated"}]})[1] is None, (
        "it may be half a match"
    )


def test_no_pattern_takes_longer_than_a_few_times_reading_the_message() -> None:
    """A backtracking search would take quadratic time or never end: here 10,000 times as long."""

    def seconds(pattern: str, end: str) -> float:
        source, raw = a_chat(pattern, "USER"), raw_of({"text": "a" * (slack_message.SEARCHED - 1) + end})
        began = time.process_time()
        read_chat_raw(raw, source)
        return time.process_time() - began

    harmless = min(seconds("^(?P<id>b)", "") for _ in range(5))
    for pattern, end in ((r"(?P<id>(a|aa)+)$", "!"), (r"(?P<id>(\w+)*)@", ""), (r"(?P<id>a*a*a*a*a*)b", "b")):
        assert min(seconds(pattern, end) for _ in range(5)) < 200 * harmless, pattern


# --- forms


def test_a_form_is_read_as_its_payload() -> None:
    body = urlencode({"payload": json.dumps({"text": "user 42 was updated: \u00e4"})}).encode()
    raw = RawRequest("chat", AS_FORM, body, SENT_AT)
    slack_message.PRESET.check_type(raw)
    assert read_chat_raw(raw).entity_id == "42"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"text=hello", b"payload={}&payload={}", b"payload=", b"payload=hello", b"payload=%ff", b"payload=\xff"),
        *(b"&a=" * 101, b"payload=1", b"payload=[]", b"payload={}"),
    ],
)
def test_a_form_without_one_good_payload_is_refused(body: bytes) -> None:
    with pytest.raises((InvalidEvent, Unreadable)):
        read_chat_raw(RawRequest("chat", AS_FORM, body, SENT_AT))


# --- dedup keys


def read_key_at(seconds: float, message: object = "user 42 was updated", **headers: str) -> str:
    return dedup_key(read_chat_raw(raw_of({"text": message}, SENT_AT + timedelta(seconds=seconds), **headers)))


def test_a_repeat_is_the_same_event_and_the_same_words_more_than_five_minutes_later_are_another() -> None:
    assert read_key_at(0) == read_key_at(1) == read_key_at(120)
    assert read_key_at(0) != read_key_at(0, "user 43 was updated")
    assert all(read_key_at(start) != read_key_at(start + 300) for start in range(0, 300, 7))
    for header in ("idempotency_key", "webhook_id"):  # from a sender that identifies its retries
        assert read_key_at(0, **{header: "k1"}) == read_key_at(3600, "in other words", **{header: "k1"})
        assert read_key_at(0, **{header: "k1"}) != read_key_at(0, **{header: "k2"})


# --- the configuration


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        *(({"pattern": pattern, "entity_type": "X"}, "pattern") for pattern in ("(?P<id>", r"(?<=user )(?P<id>\d+)")),
        ({"pattern": r"(?P<type>\w)(?P<id>\d)(?P=id)"}, "pattern"),
        ({"pattern": r"user (?P<id>\d+)|(?P<id>\d+) user", "entity_type": "USER"}, "pattern"),
        ({"pattern": r"user \d+", "entity_type": "USER"}, "pattern"),
        ({"pattern": r"(?P<id>\d+)"}, "pattern"),
        ({"pattern": r"(?P<id>\d+)(?P<kind>x)", "entity_type": "USER"}, "pattern"),
        ({"entity_type": "USER"}, "pattern"),
        ({"preset": "trivore", "pattern": "(?P<id>x)"}, "pattern"),
        ({"preset": "trivore", "entity_type": "USER"}, "entity_type"),
    ],
)
def test_a_bad_pattern_is_a_mistake_in_the_file(keys: dict[str, str], key: str) -> None:
    table = {"preset": "slack-message", **keys}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    assert f"[sources.chat] {key}: " in mistake(f'[sources.chat]\nauth = {{ kind = "none" }}\n{lines}\n')


# --- Salesforce's outbound messages


ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
    ' <soapenv:Body>\n  <notifications xmlns="http://soap.sforce.com/2005/09/outbound">\n'
    "   <OrganizationId>00D24xxx</OrganizationId>\n   <ActionId>04k0800000CCXIA2</ActionId>\n   {session}\n"
    "   <EnterpriseUrl>https://example.my.salesforce.com/services/Soap/c/62.0/00D24xxx</EnterpriseUrl>\n   {notifications}\n"
    "  </notifications>\n </soapenv:Body>\n</soapenv:Envelope>"
)
"""A message as in Salesforce's guide and in its users' examples."""
NIL = '<SessionId xsi:nil="true"/>'
SESSION = '<SessionId note="a>b">00D!AQ<![CDATA[secret]]></SessionId>'


def notification(event_id: str, record: str = "<sf:Id>0061</sf:Id>", of: str = "sf:Opportunity") -> str:
    return (
        f'<Notification>\n<Id>{event_id}</Id>\n<sObject xsi:type="{of}" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
        f"{record}</sObject>\n</Notification>"
    )


def message(*notifications: str, session: str = NIL) -> bytes:
    return ENVELOPE.format(session=session, notifications="\n".join(notifications)).encode()


def make_soap(body: bytes) -> RawRequest:
    return make_request("salesforce", body, {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'})


def test_one_notification_is_stored_byte_for_byte() -> None:
    record = "<sf:Id>0061</sf:Id><sf:Name>Tom &amp; Jürgen</sf:Name><sf:Id>9</sf:Id>"
    body = message(notification("04l0800002nrC5BAAU", record))
    (event,) = read(make_soap(body))
    assert (event.entity_type, event.entity_id, event.event_type) == ("Opportunity", "0061", "Opportunity.changed")
    assert (event.dedup_key, event.event_id, event.action) == ("04l0800002nrC5BAAU",) * 2 + ("update",)
    assert (event.occurred_at, event.body) == (NOW, body)
    (parsed,) = salesforce.parse(body)
    assert parsed.record["Name"] == "Tom & Jürgen"


def test_the_time_of_the_change_counts_where_the_message_has_it() -> None:
    changed = "<sf:LastModifiedDate>2025-12-31T23:00:00.000Z</sf:LastModifiedDate>"
    modified = "<sf:SystemModstamp>2025-12-31T23:30:00.000Z</sf:SystemModstamp>"
    for record, expected in ((changed, "2025-12-31T23:00:00Z"), (changed + modified, "2025-12-31T23:30:00Z")):
        (identity,) = PRESETS["salesforce"].read(make_soap(message(notification("04l1", record))), None)
        assert identity.occurred_ns == parse_rfc3339(expected)
        assert identity.entity_id is None
        assert identity.event_type == "changed"


def test_of_several_notifications_each_is_stored_with_what_stands_around_it() -> None:
    body = message(*(notification(f"04l{n}", f"<sf:Id>{n}</sf:Id>") for n in range(100)))
    events = read(make_soap(body))
    assert [each.entity_id for each in events] == [str(n) for n in range(100)]
    for number, each in enumerate(events):
        root = ET.fromstring(each.body)  # noqa: S314  # written by this project
        found = [node.text for node in root.iter("{http://soap.sforce.com/2005/09/outbound}Id")]
        assert found == [f"04l{number}"]
        assert b"<OrganizationId>00D24xxx</OrganizationId>" in each.body
        assert read(make_soap(each.body))[0].dedup_key == each.dedup_key


def test_a_session_id_is_never_stored_with_an_event() -> None:
    """A reader of the inbox could otherwise call Salesforce."""
    for ids in (["04l0"], ["04l0", "04l1"]):
        events = read(make_soap(message(*map(notification, ids), session=SESSION)))
        assert len(events) == len(ids)
        for each in events:
            assert not any(word in each.body for word in (b"secret", b"AQ", b"SessionId"))
            ET.fromstring(each.body)  # noqa: S314


def test_a_session_id_where_none_belongs_is_refused() -> None:
    one, other = notification("04l1"), notification("04l2", SESSION)
    for body in (message(one + SESSION), message(one, other), message(one, session=SESSION + SESSION)):
        with pytest.raises(InvalidEvent, match="SessionId"):
            read(make_soap(body))


def add_doctype(text: str) -> bytes:
    return message(notification("04l1")).replace(b"?>", b"?>\n" + text.encode(), 1)


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
HARMFUL: dict[str, bytes] = {
    "a billion laughs": add_doctype(f'<!DOCTYPE x [<!ENTITY a0 "ha">{BOMB}]>').replace(b"04l1", b"&a9;"),
    "a file": add_doctype('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>').replace(b"04l1", b"&f;"),
    "a DTD elsewhere": add_doctype('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">'),
    "a parameter entity": add_doctype('<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>'),
    "an entity that is none": message(notification("&nothing;")),
    "UTF-16": message(notification("04l1")).decode().encode("utf-16"),
    "UTF-7": message(notification("04l1")).replace(b'"UTF-8"', b'"UTF-7"') + b"+ADw-",
    "nested": b"<a>" * 100_000,
    "nested a little": message(notification("04l1", "<sf:a>" * 17 + "</sf:a>" * 17)),
    "not closed": message(notification("04l1"))[:-3],
    "two roots": message(notification("04l1")) * 2,
    "NUL": message(notification("04l\0")),
    "no bytes": b"",
    "JSON": b'{"Id": "04l1"}',
    "another namespace": message(notification("04l1")).replace(b"/2005/09/outbound", b"/2005/09/inbound"),
    "no id": message(notification("")),
    "a long id": message(notification("x" * 10_000)),
    "one in another": message(f"<Notification>{notification('04l1')}</Notification>"),
    "too many elements": message(notification("04l1", "<sf:a/>" * 60_000)),
    "too many notifications": message(*[notification("04l1")] * (fields.MOST_EVENTS + 1)),
    "two ids": message(notification("04l1").replace("<Id>", "<Id>04l0</Id><Id>", 1)),
    "two records": message(notification("04l1").replace("<sObject ", '<sObject xsi:type="sf:User"/><sObject ', 1)),
    "an empty notification": message("<Notification/>"),
    "many with much around them": message(*[notification("04l1")] * 1000, session=f"<x>{'y' * 100_000}</x>"),
}


@pytest.mark.parametrize("body", HARMFUL.values(), ids=HARMFUL)
def test_xml_that_does_harm_elsewhere_is_refused(body: bytes) -> None:
    with pytest.raises((Unreadable, InvalidEvent)):
        read(make_soap(body))


def test_a_large_record_takes_little_more_than_itself() -> None:
    body = message(notification("04l1", f"<sf:Id>1</sf:Id><sf:Text>{'é' * 1_000_000}</sf:Text>"))
    salesforce.parse(body)
    tracemalloc.start()
    try:
        (event,) = read(make_soap(body))
        assert tracemalloc.get_traced_memory()[1] <= 5 * len(body)
    finally:
        tracemalloc.stop()
    assert event.entity_id == "1"


def test_reading_leaves_no_cycle_that_keeps_a_body() -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            salesforce.parse(message(notification("04l1")))
            with pytest.raises(RequestError):
                salesforce.parse(HARMFUL["a billion laughs"])
        assert not [each for each in gc.get_objects() if isinstance(each, salesforce._SoapHandlers)]
    finally:
        gc.enable()


def test_a_sample_with_any_names_is_well_formed() -> None:
    sample = PRESETS["salesforce"].sample
    assert sample is not None
    made = sample('A"&<b>', "1&<2>", "x", NOW)
    (parsed,) = salesforce.parse(made.body)
    assert (parsed.type, parsed.record["Id"]) == ('A"&<b>', "1&<2>")
    assert read(sign_sample("salesforce", ""))[0].occurred_at == NOW
