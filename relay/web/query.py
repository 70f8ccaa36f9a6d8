"""Converts the parameters of a URL, a form or JSON to a frozen query, and responses to JSON. Pure, except for reading bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from falcon.asgi import Request

from inbox.config.mistakes import nearest
from inbox.db.dialect import is_storable
from inbox.errors import BadFilter
from inbox.events.timestamps import parse_time
from inbox.http.bodies import read_whole
from relay.operations.table import describe_wrong_field

_encoder = msgspec.json.Encoder(enc_hook=str, decimal_format="number")


def encode(answer: object) -> bytes:
    r"""Encode a response. Postgres' numeric values become numbers, and half a surrogate pair becomes `\ud800`.

    SQLite stores such a half as an escape in JSON, and UTF-8 can't encode it. One such row must not break the whole list.
    """
    try:
        return _encoder.encode(answer)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(answer, enc_hook=str, builtin_types=(Decimal,))
        text = json.dumps(plain, ensure_ascii=False, default=float)
        return _HALF.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text).encode()


_HALF = re.compile("[\ud800-\udfff]")


def encodable_text(text: str) -> str:
    """Escape each half of a surrogate pair in a text."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


MOST_BYTES = 64 * 1024
MOST_FIELDS = 500
FORM_TYPE = "application/x-www-form-urlencoded"


async def read_form(req: Request, most: int = MOST_BYTES) -> dict[str, str]:
    """Read the fields of a form.

    Raises:
        BadFilter: the body is not a form, has a field twice, or is not UTF-8.
        RequestError: the body exceeds `most` bytes, is slow, or is cut short.
    """
    if (req.content_type or "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise BadFilter(f"expected a form of type {FORM_TYPE}")
    body = await read_whole(req, most)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise BadFilter("the form is not UTF-8, or has too many fields") from None
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise BadFilter(f"{name} is given twice", field=name)
        fields[name] = value
    return fields


async def read_json(req: Request, most: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadFilter: the body is not a JSON object.
        RequestError: as `read_form`.
    """
    try:
        return msgspec.json.decode(await read_whole(req, most), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFilter(f"the body is not a JSON object: {error}") from None


LIVE_FIELD = "live"
"""Parameter of every screen: `live=0` turns the page's refresh off. It has no effect on JSON."""


def given_in(req: Request, path: Mapping[str, object] = {}) -> dict[str, Any]:
    """Return the parameters of a URL and its path, except those that only affect the display."""
    return {name: value for name, value in {**req.params, **path}.items() if name != LIVE_FIELD}


Query = TypeVar("Query", bound=msgspec.Struct)

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=200, description="Most rows of a page.")]
Before = Annotated[Number, msgspec.Meta(description="Only rows below this one; `before` of the previous page.")]
Text = Annotated[str, msgspec.Meta(max_length=1000, extra_json_schema={"pattern": "^[^\\x00]*$"})]
"""Text without NUL: no database stores a NUL, and `convert` refuses it."""
TIMES, LISTS = ("since", "until"), ("seqs", "deliveries", "kinds")
"""Fields with a time, possibly relative such as `2d`, and fields with a list, comma-separated if given as text."""

LONGEST_VALUE = 10_000
"""Maximum characters in a value: the length of the longest id of an entity."""
_FIELD = re.compile(r"[A-Za-z_]+")


def convert(
    kind: type[Query],
    given: Mapping[str, object],
    now: datetime,
    *,
    strict: bool = False,
    known: Sequence[str] | None = None,
) -> Query:
    """Make a query from the parameters of a URL, the fields of a form or, with `strict`, the members of a JSON object.

    In a URL or a form, texts are converted to other types, and empty ones count as absent. `known` limits the fields; None
    allows all fields of the query.

    Raises:
        BadFilter: a field is unknown, or has a wrong value.
    """
    names, values = kind.__struct_fields__ if known is None else known, dict[str, Any]()
    for name, value in given.items():
        if value == "" and not strict:
            continue
        if name not in names:
            shown = name[:100]
            raise BadFilter(f"there is no field {shown!r}; {nearest(shown, names)}", field=name)
        values[name] = _check_value(name, value, now, strict=strict)
    try:
        made = msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _bad_filter(error, values) from None
    for name, value in values.items():
        if getattr(made, name) is None and value is not None:  # msgspec reads the text `null` as None
            raise BadFilter(f"{name} {value!r}: omit it to match any value", field=name)
    return made


def _check_value(name: str, value: Any, now: datetime, *, strict: bool) -> Any:  # noqa: ANN401  # any JSON
    """Require storable texts, and convert the times and lists in a value."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and len(each) > LONGEST_VALUE:
            raise BadFilter(f"{name}: a value has at most {LONGEST_VALUE:,} characters", field=name)
        if isinstance(each, str) and not is_storable(each):
            raise BadFilter(f"{name} {each!r}: a database can't store such a character", field=name)
    if isinstance(value, list) and name not in LISTS and not strict:
        raise BadFilter(f"{name} is given twice", field=name)
    if name in LISTS and isinstance(value, str) and not strict:
        return value.split(",")
    try:
        return parse_time(value, now) if name in TIMES and isinstance(value, str) else value
    except ValueError as error:
        raise BadFilter(f"{name} {value!r}: {error}", field=name) from None


def _bad_filter(error: msgspec.ValidationError, values: Mapping[str, object]) -> BadFilter:
    place, says = describe_wrong_field(error)
    found = _FIELD.match(place)
    name = found[0] if found else ""
    value = f" {values[name]!r}" if name in values else ""
    return BadFilter(f"{name or 'the request'}{value}{says}", field=name or None)


def url(path: str, given: Mapping[str, object], **changed: object) -> str:
    """Return a URL with the given parameters, some of them changed; None removes one."""
    asked = {name: value for name, value in {**given, **changed}.items() if value not in (None, "")}
    return f"{path}?{urlencode(asked, doseq=True)}" if asked else path
