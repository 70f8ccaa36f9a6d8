"""Values in and out: parameters of a URL or form as a frozen query, and answers as JSON. Pure, but for the bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import falcon
import msgspec
from falcon.asgi import Request

from inbox.config.mistakes import nearest
from inbox.db.dialect import is_storable
from inbox.errors import BadFilter, NothingThere, RequestError
from inbox.events.timestamps import parse_time
from inbox.http.bodies import read_whole
from relay.operations.table import wrong_field

_encoder = msgspec.json.Encoder(enc_hook=str, decimal_format="number")


def encode(answer: object) -> bytes:
    r"""Encode an answer. Figures that Postgres has as numeric are numbers; half a surrogate pair becomes `\ud800`.

    SQLite stores such a half as an escape in JSON, and UTF-8 has no form for it: one row must not take its list away.
    """
    try:
        return _encoder.encode(answer)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(answer, enc_hook=str, builtin_types=(Decimal,))
        text = json.dumps(plain, ensure_ascii=False, default=float)
        return _HALF.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text).encode()


_HALF = re.compile("[\ud800-\udfff]")


def encodable_text(text: str) -> str:
    """Return a text with each half of a surrogate pair as an escape."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


MOST_BYTES = 64 * 1024
MOST_FIELDS = 500
FORM_TYPE = "application/x-www-form-urlencoded"


async def read_body(req: Request) -> bytes:
    """Read a body.

    Raises:
        HTTPError: it has more than `MOST_BYTES`, is slow, or is cut short.
    """
    try:
        return await read_whole(req, MOST_BYTES)
    except RequestError as error:
        raise falcon.HTTPError(error.status, title=error.title, description=error.detail) from None


async def read_form(req: Request) -> dict[str, str]:
    """Read the fields of a form.

    Raises:
        BadFilter: it is no form, has a field twice, or is not UTF-8.
        HTTPError: as `read_body`.
    """
    if (req.content_type or "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise BadFilter(f"expected a form, of the type {FORM_TYPE}")
    body = await read_body(req)
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


Query = TypeVar("Query", bound=msgspec.Struct)

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=200)]
Text = Annotated[str, msgspec.Meta(max_length=1000, extra_json_schema={"pattern": "^[^\\x00]*$"})]
"""Text without NUL, which `parse` refuses in any value: no database stores it."""


class GivenTime(str):
    """A time as a person gives it: RFC 3339, a date, or a span back from now such as `2d`. The URL keeps it as given."""

    __slots__ = ("moment",)
    moment: datetime

    @classmethod
    def parse(cls, given: str, now: datetime) -> GivenTime:
        """Parse it.

        Raises:
            ValueError: no time.
        """
        made = cls(given)
        made.moment = parse_time(given, now)
        return made


def filter_of(query: msgspec.Struct) -> dict[str, Any]:
    """Return the values of a query by their names, with each time as a moment."""
    given = msgspec.structs.asdict(query)
    return {name: value.moment if isinstance(value, GivenTime) else value for name, value in given.items()}


LONGEST_VALUE = 10_000
"""Characters of one value: as many as an id of an entity has at most."""
_FIELD = re.compile(r"[A-Za-z_]+")


def parse(kind: type[Query], given: Mapping[str, str], now: datetime, *, known: Sequence[str] | None = None) -> Query:
    """Make a query from the parameters of a URL; empty ones count as absent, as forms send them.

    Others than those in `known` count as unknown; None: any field of it is known.

    Raises:
        BadFilter: a parameter is unknown or has a wrong value.
    """
    return convert(kind, {name: value for name, value in given.items() if value != ""}, now, known=known)


def of_path(kind: type[Query], path: Mapping[str, object], now: datetime) -> Query:
    """Make a query from the parts of a path alone.

    Raises:
        NothingThere: they name nothing that can be.
    """
    try:
        return parse(kind, {name: str(value) for name, value in path.items()}, now)
    except BadFilter as error:
        raise NothingThere(error.detail) from None


def parameters(given: Mapping[str, object], path: Mapping[str, object]) -> dict[str, str]:
    """Return the parameters of a request, with the parts of its path.

    Raises:
        BadFilter: one is given twice, or stands in the path.
    """
    for name, value in given.items():
        if not isinstance(value, str) or name in path:
            raise BadFilter(f"{name} is given twice", field=name)
    return {name: str(value) for name, value in {**path, **given}.items()}


def convert(
    kind: type[Query],
    filled: Mapping[str, object],
    now: datetime,
    *,
    strict: bool = False,
    known: Sequence[str] | None = None,
) -> Query:
    """Make a query from named values; texts stand for other types unless `strict`. `known` is as in `parse`.

    Raises:
        BadFilter: as `parse`.
    """
    names = kind.__struct_fields__ if known is None else known
    for name, value in filled.items():
        if name not in names:
            given = name[:100]
            raise BadFilter(f"there is no filter {given!r}; {nearest(given, names)}", field=name)
        texts = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(each, str) and len(each) > LONGEST_VALUE for each in texts):
            raise BadFilter(f"{name}: a value has at most {LONGEST_VALUE:,} characters", field=name)
        if isinstance(value, str) and not is_storable(value):
            raise BadFilter(f"{name} {value!r}: no database stores such a character", field=name)

    def hook(wanted: type[Any], value: Any) -> Any:  # noqa: ANN401  # as msgspec has it
        if wanted is GivenTime and isinstance(value, str):
            return GivenTime.parse(value, now)
        raise ValueError("a time is a text")

    try:
        made = msgspec.convert(filled, kind, strict=strict, dec_hook=hook)
    except msgspec.ValidationError as error:
        raise _bad_filter(error, filled) from None
    for name, value in filled.items():
        if getattr(made, name) is None and value is not None:  # msgspec takes the text `null` for None
            raise BadFilter(f"{name} {value!r}: leave it out for any", field=name)
    return made


def _bad_filter(error: msgspec.ValidationError, filled: Mapping[str, object]) -> BadFilter:
    place, says = wrong_field(error)
    found = _FIELD.match(place)
    name = found[0] if found else ""
    value = f" {filled[name]!r}" if name in filled else ""
    return BadFilter(f"{name or 'the filter'}{value}: {says}", field=name or None)


def url(path: str, query: msgspec.Struct, **changed: object) -> str:
    """Write the URL of a query, with some parameters changed; those with their default are left out."""
    fields = msgspec.structs.fields(query)
    given = {field.name: (getattr(query, field.name), field.default) for field in fields}
    values: dict[str, Any] = {name: value for name, (value, default) in given.items() if value != default}
    values.update(changed)
    asked = {
        name: "true" if value is True else str(value)
        for name, value in values.items()
        if not (value is None or value is False or value == "")
    }
    return f"{path}?{urlencode(asked)}" if asked else path
