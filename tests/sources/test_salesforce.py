"""Salesforce's outbound messages: what is read in their XML, what is stored, and XML that does harm elsewhere."""

from __future__ import annotations

import gc
import tracemalloc
from xml.etree import ElementTree as ET

import pytest

from inbox.errors import InvalidEvent, RequestError, Unreadable
from inbox.events.event import RawRequest
from inbox.events.timestamps import parse_rfc3339
from inbox.sources import PRESETS, fields
from inbox.sources.presets import salesforce
from tests.sources.presenting import NOW, a_request, read, signed_sample

ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
    ' <soapenv:Body>\n  <notifications xmlns="http://soap.sforce.com/2005/09/outbound">\n'
    "   <OrganizationId>00D24xxx</OrganizationId>\n   <ActionId>04k0800000CCXIA2</ActionId>\n   {session}\n"
    "   <EnterpriseUrl>https://example.my.salesforce.com/services/Soap/c/62.0/00D24xxx</EnterpriseUrl>\n   {notifications}\n"
    "  </notifications>\n </soapenv:Body>\n</soapenv:Envelope>"
)
"""As Salesforce's guide describes a message, and its users show theirs."""
NIL = '<SessionId xsi:nil="true"/>'
SESSION = '<SessionId note="a>b">00D!AQ<![CDATA[secret]]></SessionId>'


def notification(event_id: str, record: str = "<sf:Id>0061</sf:Id>", of: str = "sf:Opportunity") -> str:
    return (
        f'<Notification>\n<Id>{event_id}</Id>\n<sObject xsi:type="{of}" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
        f"{record}</sObject>\n</Notification>"
    )


def message(*notifications: str, session: str = NIL) -> bytes:
    return ENVELOPE.format(session=session, notifications="\n".join(notifications)).encode()


def sent(body: bytes) -> RawRequest:
    return a_request("salesforce", body, {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'})


def test_one_notification_is_stored_byte_for_byte() -> None:
    record = "<sf:Id>0061</sf:Id><sf:Name>Tom &amp; Jürgen</sf:Name><sf:Id>9</sf:Id>"
    body = message(notification("04l0800002nrC5BAAU", record))
    (event,) = read(sent(body))
    assert (event.entity_type, event.entity_id, event.event_type) == ("Opportunity", "0061", "Opportunity.changed")
    assert (event.dedup_key, event.event_id, event.action) == ("04l0800002nrC5BAAU",) * 2 + ("update",)
    assert (event.occurred_at, event.body) == (NOW, body)
    (parsed,) = salesforce.parse(body)
    assert parsed.record["Name"] == "Tom & Jürgen"


def test_the_time_of_the_change_counts_where_the_message_has_it() -> None:
    changed = "<sf:LastModifiedDate>2025-12-31T23:00:00.000Z</sf:LastModifiedDate>"
    modified = "<sf:SystemModstamp>2025-12-31T23:30:00.000Z</sf:SystemModstamp>"
    for record, expected in ((changed, "2025-12-31T23:00:00Z"), (changed + modified, "2025-12-31T23:30:00Z")):
        (identity,) = PRESETS["salesforce"].read(sent(message(notification("04l1", record))), None)
        assert identity.occurred_ns == parse_rfc3339(expected)
        assert identity.entity_id is None
        assert identity.event_type == "changed"


def test_of_several_notifications_each_is_stored_with_what_stands_around_it() -> None:
    body = message(*(notification(f"04l{n}", f"<sf:Id>{n}</sf:Id>") for n in range(100)))
    events = read(sent(body))
    assert [each.entity_id for each in events] == [str(n) for n in range(100)]
    for number, each in enumerate(events):
        root = ET.fromstring(each.body)  # noqa: S314  # what this project wrote itself
        found = [node.text for node in root.iter("{http://soap.sforce.com/2005/09/outbound}Id")]
        assert found == [f"04l{number}"]
        assert b"<OrganizationId>00D24xxx</OrganizationId>" in each.body
        assert read(sent(each.body))[0].dedup_key == each.dedup_key


def test_a_session_id_is_never_stored_with_an_event() -> None:
    """With it, whoever reads the inbox could call Salesforce."""
    for ids in (["04l0"], ["04l0", "04l1"]):
        events = read(sent(message(*map(notification, ids), session=SESSION)))
        assert len(events) == len(ids)
        for each in events:
            assert not any(word in each.body for word in (b"secret", b"AQ", b"SessionId"))
            ET.fromstring(each.body)  # noqa: S314


def test_a_session_id_where_none_belongs_is_refused() -> None:
    one, other = notification("04l1"), notification("04l2", SESSION)
    for body in (message(one + SESSION), message(one, other), message(one, session=SESSION + SESSION)):
        with pytest.raises(InvalidEvent, match="SessionId"):
            read(sent(body))


def entities(text: str) -> bytes:
    return message(notification("04l1")).replace(b"?>", b"?>\n" + text.encode(), 1)


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
HARMFUL: dict[str, bytes] = {
    "a billion laughs": entities(f'<!DOCTYPE x [<!ENTITY a0 "ha">{BOMB}]>').replace(b"04l1", b"&a9;"),
    "a file": entities('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>').replace(b"04l1", b"&f;"),
    "a DTD elsewhere": entities('<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">'),
    "a parameter entity": entities('<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>'),
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
        read(sent(body))


def test_a_large_record_takes_little_more_than_itself() -> None:
    body = message(notification("04l1", f"<sf:Id>1</sf:Id><sf:Text>{'é' * 1_000_000}</sf:Text>"))
    salesforce.parse(body)
    tracemalloc.start()
    try:
        (event,) = read(sent(body))
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
    assert read(signed_sample("salesforce", ""))[0].occurred_at == NOW
