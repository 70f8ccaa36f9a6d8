"""Reads the notifications of a SOAP message from Salesforce, and where each stands in its bytes.

XML from outside can do harm by entities, references to other files, and nesting. SOAP 1.1 §3 allows no document type
declaration, and without one there is no entity but the five of XML itself: a message that has one is rejected at its start.
Every other encoding than UTF-8 is refused. The parser makes no tree: it keeps the few texts that an event needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.parsers import expat

import msgspec

from inbox.errors import InvalidEvent, Unreadable
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
    """Texts of its own elements, such as `Id`."""
    type: str
    """Type of its record, without a prefix; empty where there is none."""
    record: Mapping[str, str]
    """Texts of the record's elements, without their prefixes."""
    part: bytes | None
    """The message with this notification alone and without a session id; None where that is the message itself."""


class _Found(msgspec.Struct):
    start: int
    end: int = 0
    type: str = ""
    fields: dict[str, str] = {}
    record: dict[str, str] = {}


class _SoapHandlers:
    """Handlers of the parser's events."""

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
            del self._parser  # it refers to this object: a cycle would keep the body

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
                raise InvalidEvent("SessionId may be there once, before the notifications", field="SessionId")
            self._session_at = self._parser.CurrentByteIndex
        elif name == _OBJECT and self._path[-2:-1] == [_NOTIFICATION]:
            self.found[-1].type = attributes.get(_TYPE, "").rpartition(":")[2]

    def _end(self, name: str) -> None:
        at = self._parser.CurrentByteIndex
        *_, grandparent, parent, _last = ["", "", *self._path]
        if name == _NOTIFICATION:
            self.found[-1].end = self._after(at)
        elif name == _SESSION and self.body.startswith(b"</", at):  # `<SessionId xsi:nil="true"/>` holds nothing
            self.session = (self._session_at, self._after(at))
        elif parent == _NOTIFICATION:
            fields, own = self.found[-1].fields, name.rpartition(" ")[2]
            if own in fields:  # another reader could take the other id, or the other record
                raise InvalidEvent(f"a Notification may have one {own[:_LONGEST_NAME]}", field="Notification")
            fields[own] = "".join(self._text)
        elif parent == _OBJECT and grandparent == _NOTIFICATION:
            self.found[-1].record.setdefault(name.rpartition(" ")[2], "".join(self._text))
        self._path.pop()
        self._text.clear()

    def _after(self, at: int) -> int:
        """Return the end of the tag that ends at `at`: of `<a/>` the parser reports its end, of `</a>` its beginning."""
        return self.body.index(b">", at) + 1 if self.body.startswith(b"</", at) else at


def parse(body: bytes) -> tuple[Notification, ...]:
    """Return the notifications of a message, in its order.

    Raises:
        Unreadable: no well-formed XML in UTF-8, or with a document type declaration.
        InvalidEvent: no notification, too many of them, or XML that is too large.
    """
    reader = _SoapHandlers(body)
    try:
        body.decode()
        reader.parse()
    except UnicodeDecodeError:
        raise Unreadable("the XML is not UTF-8", field="body") from None
    except expat.ExpatError as error:
        raise Unreadable(f"the body is no XML: {expat.ErrorString(error.code)}", field="body") from None
    found, session = reader.found, reader.session
    if not found:
        raise InvalidEvent("there is no Notification", field="Notification")
    if session is None and len(found) == 1:
        return (Notification(found[0].fields, found[0].type, found[0].record, None),)
    first, last = session or (found[0].start, found[0].start)
    before = body[:first] + body[last : found[0].start]
    after = body[found[-1].end :]
    if (len(before) + len(after)) * len(found) + len(body) > LARGEST_PARTS:
        raise InvalidEvent("too much stands around the notifications, and is stored with each", field="body")
    return tuple(
        Notification(each.fields, each.type, each.record, b"".join((before, body[each.start : each.end], after)))
        for each in found
    )
