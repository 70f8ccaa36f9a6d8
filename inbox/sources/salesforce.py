"""Salesforce's outbound messages: SOAP, with up to 100 notifications in each.

From https://developer.salesforce.com/docs/atlas.en-us.api.meta/api/sforce_api_om_outboundmessaging_notifications.htm (batches,
duplicates by the notification's id, retries for 24 hours) and sforce_api_om_outboundmessaging_wsdl.htm beside it (the elements,
the answer with `Ack`). Every edition with flows or workflow rules has them, and they are Salesforce's one way to POST a change
of a record to any URL by itself. Its others are no webhooks (Pub/Sub API, Event Relay to AWS), need Data Cloud (data actions,
signed), or are another product (Marketing Cloud). Salesforce signs no outbound message, so the source needs an `auth`.

A message may hold a session id, with which its reader can call Salesforce as its user. It is never stored with an event.
`inbox/sources/soap.py` reads the XML.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from xml.sax.saxutils import escape

from inbox.events.event import Identity, RawRequest
from inbox.events.timestamps import rfc3339
from inbox.sources import fields, reading, soap
from inbox.sources.base import Preset, PresetDocs, Sample

_ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
_ACK = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    f'<soapenv:Envelope xmlns:soapenv="{_ENVELOPE}"><soapenv:Body>'
    f'<notificationsResponse xmlns="{soap.OUTBOUND}"><Ack>true</Ack></notificationsResponse>'
    "</soapenv:Body></soapenv:Envelope>"
)
"""Salesforce sends everything again that is not answered with this."""
_TIMES = ("SystemModstamp", "LastModifiedDate")
"""Fields of a record with the time of its change; the first that the message has counts."""


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the notifications of a message.

    Raises:
        Unreadable: it is no such XML.
        InvalidEvent: there is no notification, or one of them is none.
    """
    return tuple(_event(raw, each, dedup) for each in soap.parse(raw.body))


def _event(raw: RawRequest, notification: soap.Notification, dedup: Sequence[str] | None) -> Identity:
    event_id = fields.text_field(notification.fields, "Id", fields.LONGEST_ID)
    kind, identifier = reading.entity(notification.type, notification.record.get("Id"))
    timed = next((name for name in _TIMES if notification.record.get(name)), None)
    return Identity(
        entity_type=kind,
        entity_id=identifier,
        event_type=fields.entity_type(f"{kind}.changed" if kind else None) or "changed",
        action="update",
        occurred_ns=fields.time_field(notification.record, timed, raw.received_at) if timed else fields.arrival(raw),
        key_parts=fields.key_of(notification.record, dedup, event_id),
        event_id=event_id,
        part=notification.part,
    )


def sample(kind: str, identifier: str, _event_type: str, at: datetime) -> Sample:
    """Make a message with one notification of a record."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope xmlns:soapenv="{_ENVELOPE}"'
        f' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><notifications xmlns="{soap.OUTBOUND}">'
        '<OrganizationId>00D000000000001EAA</OrganizationId><SessionId xsi:nil="true"/><Notification>'
        f"<Id>04lsample{escape(identifier)}{at:%Y%m%d%H%M%S}</Id>"
        f'<sObject xsi:type="sf:{escape(kind, {chr(34): "&quot;"})}" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
        f"<sf:Id>{escape(identifier)}</sf:Id><sf:SystemModstamp>{rfc3339(at)}</sf:SystemModstamp></sObject>"
        "</Notification></notifications></soapenv:Body></soapenv:Envelope>"
    )
    return Sample(body.encode(), {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'})


PRESET = Preset(
    name="salesforce",
    read=read,
    sample=sample,
    media_types=frozenset({"text/xml"}),
    max_body=4 * 1024 * 1024,  # none is documented, but 100 notifications with the fields that were chosen
    acknowledgement=("text/xml; charset=utf-8", _ACK.encode()),
    starter="""\
[sources.salesforce.auth]  # Endpoint URL of the outbound message: /webhooks/salesforce/TOKEN
kind = "url_token"
secrets = ["env:{variable}"]""",
    docs=PresetDocs(
        title="Salesforce (outbound messages)",
        event_id="`Id` of each `Notification`",
        entity="the record's type (`xsi:type`: `Opportunity`) and `Id`",
        event_type="the record's type and `changed`: `Opportunity.changed`",
        time="the record's `SystemModstamp` or `LastModifiedDate`, if the message has it; else of arrival",
        same_event="the id",
        sends="again for 24 hours, at most two hours apart, until it gets an `Ack`",
        shown_at="a text of your own, at the end of the Endpoint URL: Setup, Outbound Messages",
        acknowledged="a SOAP `Ack`",
        unchecked="the largest message, the time that it waits",
    ),
)
