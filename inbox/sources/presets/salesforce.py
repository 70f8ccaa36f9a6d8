"""Salesforce's outbound messages: SOAP with up to 100 notifications each.

From https://developer.salesforce.com/docs/atlas.en-us.api.meta/api/sforce_api_om_outboundmessaging_notifications.htm
(batches, duplicates by the notification's id, retries for 24 hours) and sforce_api_om_outboundmessaging_wsdl.htm beside
it (the elements, the response with `Ack`). Every edition with flows or workflow rules has them, and they are
Salesforce's only built-in way to POST a change of a record to any URL. The alternatives are not webhooks (Pub/Sub API,
Event Relay to AWS), need Data Cloud (signed data actions), or are another product (Marketing Cloud). Outbound messages
are not signed, so the source needs an `auth`.

A message may hold a session id, which lets its reader call Salesforce as the user. It is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from html import escape
from xml.parsers import expat

import msgspec

from inbox.errors import InvalidEvent, Unreadable
from inbox.events.event import Identity, RawRequest
from inbox.events.timestamps import rfc3339
from inbox.sources import fields
from inbox.sources.base import Preset, Sample
from inbox.sources.fields import LARGEST_PARTS, MOST_EVENTS

OUTBOUND = "http://soap.sforce.com/2005/09/outbound"
_NOTIFICATION, _SESSION, _OBJECT = f"{OUTBOUND} Notification", f"{OUTBOUND} SessionId", f"{OUTBOUND} sObject"
_TYPE = "http://www.w3.org/2001/XMLSchema-instance type"
_MOST_ELEMENTS = 50_000
_DEEPEST = 16
_LONGEST_NAME = 100


class Notification(msgspec.Struct, frozen=True):
    """One notification of a message."""

    fields: Mapping[str, str]
    """Texts of the notification's own elements, such as `Id`."""
    type: str
    """Type of the record, without prefix; empty if missing."""
    record: Mapping[str, str]
    """Texts of the record's elements, without their prefixes."""
    part: bytes | None
    """Message with only this notification and no session id; None if that is the message itself."""


class _Found(msgspec.Struct):
    start: int
    end: int = 0
    type: str = ""
    fields: dict[str, str] = {}
    record: dict[str, str] = {}


class _SoapHandlers:
    """Handlers of the XML parser's events."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.found: list[_Found] = []
        self.session: tuple[int, int] | None = None
        self._path: list[str] = []
        self._elements = 0
        self._text: list[str] = []
        self._session_at = 0
        self._parser = expat.ParserCreate("UTF-8", namespace_separator=" ")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append
        self._parser.StartDoctypeDeclHandler = self._doctype

    def parse(self) -> None:
        try:
            self._parser.Parse(self.body, True)
        finally:
            del self._parser  # it refers to this object; the cycle would keep the body

    def _doctype(self, *_: object) -> None:
        raise Unreadable("the XML must not have a document type declaration", field="body")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._elements += 1
        self._path.append(name)
        self._text.clear()
        if self._elements > _MOST_ELEMENTS or len(self._path) > _DEEPEST:
            raise InvalidEvent("the XML has too many elements, or they are nested too deep", field="body")
        if name == _NOTIFICATION:
            if _NOTIFICATION in self._path[:-1] or len(self.found) == MOST_EVENTS:
                raise InvalidEvent(f"a message may have at most {MOST_EVENTS} notifications", field="Notification")
            self.found.append(_Found(self._parser.CurrentByteIndex))
        elif name == _SESSION:
            if self.session is not None or self.found:
                raise InvalidEvent("SessionId may occur once, before the notifications", field="SessionId")
            self._session_at = self._parser.CurrentByteIndex
        elif name == _OBJECT and self._path[-2:-1] == [_NOTIFICATION]:
            self.found[-1].type = attributes.get(_TYPE, "").rpartition(":")[2]

    def _end(self, name: str) -> None:
        at = self._parser.CurrentByteIndex
        *_, grandparent, parent, _last = ["", "", *self._path]
        if name == _NOTIFICATION:
            self.found[-1].end = self._after(at)
        elif name == _SESSION and self.body.startswith(b"</", at):  # `<SessionId xsi:nil="true"/>` is empty
            self.session = (self._session_at, self._after(at))
        elif parent == _NOTIFICATION:
            fields, own = self.found[-1].fields, name.rpartition(" ")[2]
            if own in fields:  # readers could disagree on the id or the record
                raise InvalidEvent(f"a Notification may have one {own[:_LONGEST_NAME]}", field="Notification")
            fields[own] = "".join(self._text)
        elif parent == _OBJECT and grandparent == _NOTIFICATION:
            self.found[-1].record.setdefault(name.rpartition(" ")[2], "".join(self._text))
        self._path.pop()
        self._text.clear()

    def _after(self, at: int) -> int:
        """Return the end of the closing tag at `at`: the parser reports the end of `<a/>`, but the beginning of `</a>`."""
        return self.body.index(b">", at) + 1 if self.body.startswith(b"</", at) else at


def parse(body: bytes) -> tuple[Notification, ...]:
    """Return the notifications of a message in their order.

    Raises:
        Unreadable: not well-formed XML in UTF-8, or with a document type declaration.
        InvalidEvent: no notification, too many notifications, or too large XML.
    """
    reader = _SoapHandlers(body)
    try:
        body.decode()
        reader.parse()
    except UnicodeDecodeError:
        raise Unreadable("the XML is not UTF-8", field="body") from None
    except expat.ExpatError as error:
        raise Unreadable(f"the body is not XML: {expat.ErrorString(error.code)}", field="body") from None
    found, session = reader.found, reader.session
    if not found:
        raise InvalidEvent("there is no Notification", field="Notification")
    if session is None and len(found) == 1:
        return (Notification(found[0].fields, found[0].type, found[0].record, None),)
    first, last = session or (found[0].start, found[0].start)
    before = body[:first] + body[last : found[0].start]
    after = body[found[-1].end :]
    if (len(before) + len(after)) * len(found) + len(body) > LARGEST_PARTS:
        raise InvalidEvent("the XML around the notifications is too large, as it is stored with each", field="body")
    return tuple(
        Notification(each.fields, each.type, each.record, b"".join((before, body[each.start : each.end], after)))
        for each in found
    )


# --- the preset


_ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
_ACK = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    f'<soapenv:Envelope xmlns:soapenv="{_ENVELOPE}"><soapenv:Body>'
    f'<notificationsResponse xmlns="{OUTBOUND}"><Ack>true</Ack></notificationsResponse>'
    "</soapenv:Body></soapenv:Envelope>"
)
"""Response without which Salesforce sends the message again."""
_TIMES = ("SystemModstamp", "LastModifiedDate")
"""Fields of a record with the time of its change; the first one present counts."""


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the notifications of a message: see `Read`."""
    return tuple(fields.with_key(_event(raw, each), each.record, dedup, each.part) for each in parse(raw.body))


def _event(raw: RawRequest, notification: Notification) -> Identity:
    kind, identifier = fields.entity(notification.type, notification.record.get("Id"))
    timed = next((name for name in _TIMES if notification.record.get(name)), None)
    return Identity(
        kind,
        identifier,
        event_type=fields.entity_type(f"{kind}.changed" if kind else None) or "changed",
        action="update",
        occurred_ns=fields.time_field(notification.record, timed, raw.received_at) if timed else fields.arrival(raw),
        event_id=fields.text_field(notification.fields, "Id", fields.LONGEST_ID),
    )


def sample(kind: str, identifier: str, _event_type: str, at: datetime) -> Sample:
    """Make a message with one notification of a record."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope xmlns:soapenv="{_ENVELOPE}"'
        f' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><notifications xmlns="{OUTBOUND}">'
        '<OrganizationId>00D000000000001EAA</OrganizationId><SessionId xsi:nil="true"/><Notification>'
        f"<Id>04lsample{escape(identifier)}{at:%Y%m%d%H%M%S}</Id>"
        f'<sObject xsi:type="sf:{escape(kind)}" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
        f"<sf:Id>{escape(identifier)}</sf:Id><sf:SystemModstamp>{rfc3339(at)}</sf:SystemModstamp></sObject>"
        "</Notification></notifications></soapenv:Body></soapenv:Envelope>"
    )
    return Sample(body.encode(), {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'})


PRESET = Preset(
    title="Salesforce (outbound messages)",
    shown_at="a text of your own, at the end of the Endpoint URL: Setup, Outbound Messages",
    read=read,
    sample=sample,
    media_types=frozenset({"text/xml"}),
    max_body=4 * 1024 * 1024,  # no limit is documented; up to 100 notifications with the chosen fields
    acknowledgement=("text/xml; charset=utf-8", _ACK.encode()),
    starter="""\
[sources.salesforce.auth]  # Endpoint URL of the outbound message: /webhooks/salesforce/TOKEN
kind = "url_token"
secrets = ["env:{variable}"]""",
    acknowledged="a SOAP `Ack`",
)
