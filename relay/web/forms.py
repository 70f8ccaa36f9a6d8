"""Fields of a posted form."""

from __future__ import annotations

from urllib.parse import parse_qsl

import falcon
from falcon.asgi import Request

from inbox.errors import BadFilter

MOST_BYTES = 64 * 1024
MOST_FIELDS = 500
FORM_TYPE = "application/x-www-form-urlencoded"


async def read_form(req: Request) -> dict[str, str]:
    """Read the fields of a form.

    Raises:
        BadFilter: it is no form, has a field twice, or is not UTF-8.
        HTTPContentTooLarge: it has more than `MOST_BYTES`.
    """
    if (req.content_type or "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise BadFilter(f"expected a form, of the type {FORM_TYPE}")
    body = await req.stream.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise falcon.HTTPContentTooLarge(description=f"a form has at most {MOST_BYTES} bytes")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise BadFilter("the form is not UTF-8, or has too many fields") from None
    if body.startswith((b"{", b"[")):  # as of a program that leaves the type to its library
        raise BadFilter(f"the body is JSON, though its type says {FORM_TYPE}: send Content-Type: application/json")
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise BadFilter(f"{name} is given twice", field=name)
        fields[name] = value
    return fields
