"""Forms of a value in a query language, selected by `:NAME` at the end of a placeholder. Pure.

A value from outside that is copied into a query unescaped can change the query: an injection. Each form escapes a value so
that it remains a single value, or refuses it.

Facts: RFC 7644 §3.4.2.2 (SCIM: a JSON string, RFC 8259 §7), `SQUOTE-in-string` of OData's ABNF (a quote is
doubled), and "Quoted String Escape Sequences" of Salesforce's SOQL reference, which has a bell where others have a backspace.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec

from inbox.config.values import Unit
from inbox.events.timestamps import parse_rfc3339, rfc3339, to_datetime
from relay.sync.expressions import encode

_PER_UNIT = {"s": 10**9, "ms": 10**6}


def parse_instant(value: object, unit: Unit = "rfc3339") -> datetime:
    """Read an instant as an aware UTC datetime.

    Raises:
        ValueError: the value is not an instant; the text continues `it` or `the value`.
    """
    return to_datetime(parse_nanoseconds(value, unit))


def parse_nanoseconds(value: object, unit: Unit = "rfc3339") -> int:
    """Read an instant as nanoseconds since 1970.

    Raises:
        ValueError: as `parse_instant`.
    """
    if unit == "rfc3339":
        if not isinstance(value, str):
            raise ValueError("has to be a text of RFC 3339")  # every mismatch is a ValueError
        try:
            return parse_rfc3339(value)
        except ValueError as error:
            raise ValueError(f"has to be RFC 3339: it {error}") from None
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise ValueError("has to be a number since 1970")  # noqa: TRY004  # likewise
    try:
        nanoseconds = int(Decimal(str(value)) * _PER_UNIT[unit])
    except (ArithmeticError, ValueError):
        raise ValueError("has to be a number since 1970") from None
    to_datetime(nanoseconds)  # refuses years outside the range of datetime
    return nanoseconds


# --- forms


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SOQL = str.maketrans({"\\": "\\\\", "'": "\\'", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"})


class Form(msgspec.Struct, frozen=True):
    """A form in which a placeholder's value is written."""

    write: Callable[[Any], str]
    """Converts the value to text. Raises ValueError for a value that the form can't hold; its text continues `the value`."""
    quote: str | None
    """The quotes that the form adds. The template must not have quotes around the placeholder."""
    meaning: str
    example: str
    """`meaning` and `example` appear in docs/reference/configuration.md."""
    escape: str = "\\"
    """Character that escapes a quote; empty: quotes are doubled."""


def format_text(value: object) -> str:
    """Convert a single value to text.

    Raises:
        ValueError: it is a list, an object, or a number that JSON lacks; the text continues `the value`.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError("is not a single value")  # noqa: TRY004  # every mismatch is a ValueError
    if not is_json(value):
        raise ValueError("is NaN or an infinite number, which JSON can't hold")
    return str(value)


def is_json(value: object) -> bool:
    """Return True if JSON can hold all numbers in the value: an expression may yield infinity, or read `nan` from a text."""
    if isinstance(value, float | Decimal):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(is_json(inner) for inner in value)
    if isinstance(value, dict):
        return all(is_json(inner) for inner in value.values())
    return True


def percent_encode(text: str) -> str:
    """Percent-encode everything except letters, digits and `-._~`.

    Raises:
        ValueError: the text has half of a surrogate pair, which can't be encoded; the message continues `the value`.
    """
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise ValueError("holds half of a character") from None


def percent_encode_path(text: str) -> str:
    """Percent-encode each segment of a path, and keep the slashes.

    Raises:
        ValueError: a segment is empty, `.` or `..`, or holds half of a surrogate pair; the text continues `the value`.
    """
    segments = text.split("/")
    if "" in segments:
        raise ValueError("has an empty segment: it begins or ends with a slash, or has two in a row")
    if {".", ".."}.intersection(segments):
        raise ValueError("has a segment . or ..")
    return "/".join(map(percent_encode, segments))


def _json(value: object) -> str:
    if not is_json(value):
        raise ValueError("is NaN or an infinite number, which JSON can't hold")
    try:
        return encode(value).decode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character") from None


def _odata(value: object) -> str:
    return "'" + _without_control(format_text(value)).replace("'", "''") + "'"


def _soql(value: object) -> str:
    return "'" + _without_control(format_text(value).translate(_SOQL)) + "'"


def _without_control(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("holds a control character, which this form can't write")
    return text


FORMS: Mapping[str, Form] = {
    "scim": Form(
        lambda value: _json(format_text(value)),
        quote='"',
        meaning="text in a SCIM filter (RFC 7644 §3.4.2.2), in quotes; a number becomes text",
        example="externalId eq {event.entity_id:scim}",
    ),
    "odata": Form(
        _odata,
        quote="'",
        meaning="text in OData, in quotes; quotes inside are doubled",
        example="ExternalId eq {event.entity_id:odata}",
        escape="",
    ),
    "soql": Form(
        _soql,
        quote="'",
        meaning="text in Salesforce's SOQL, in quotes; quotes inside get a backslash",
        example="SELECT Id FROM Contact WHERE Ext__c = {event.entity_id:soql}",
    ),
    "json": Form(
        _json,
        quote='"',
        meaning="any value as JSON: texts in quotes, numbers without",
        example="external_id == {event.entity_id:json}",
    ),
    "epoch": Form(
        lambda value: str(parse_nanoseconds(value) // 10**9),
        quote=None,
        meaning="a time as whole seconds since 1970",
        example="{event.occurred_at:epoch}",
    ),
    "epoch-ms": Form(
        lambda value: str(parse_nanoseconds(value) // 10**6),
        quote=None,
        meaning="a time as whole milliseconds since 1970",
        example="{event.occurred_at:epoch-ms}",
    ),
    "date": Form(
        lambda value: rfc3339(parse_instant(value))[:10],
        quote=None,
        meaning="the UTC date of a time, as `2026-01-31`",
        example="{event.occurred_at:date}",
    ),
    "url": Form(
        lambda value: percent_encode(format_text(value)),
        quote=None,
        meaning="percent-encoded, for a URL in a text",
        example="https://crm.example.com/{event.entity_id:url}",
    ),
    "path": Form(
        lambda value: percent_encode_path(format_text(value)),
        quote=None,
        meaning="a value with slashes in a path: segments are percent-encoded, and may not be empty, `.` or `..`",
        example="/repos/{event.body.repository.full_name:path}/issues",
    ),
    "text": Form(
        format_text,
        quote=None,
        meaning="unchanged, for prose only: in a query language, a value could change the query",
        example="gone since {event.occurred_at:text}",
    ),
}
"""Every form by its name in placeholders."""
