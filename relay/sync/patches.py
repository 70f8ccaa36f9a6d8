"""What is sent to change a counterpart, in each of the formats that services take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlencode

from inbox.errors import MappingError
from relay.sync.expressions import encode

Format = Literal["merge-patch", "json-patch", "json", "form"]

MEDIA_TYPES: dict[Format, str] = {
    "merge-patch": "application/merge-patch+json",  # RFC 7396
    "json-patch": "application/json-patch+json",  # RFC 6902
    "json": "application/json",
    "form": "application/x-www-form-urlencoded",
}


def changes(form: Format, fields: Mapping[str, Any], target: object, where: str) -> bytes | None:
    """The body that gives these fields to the counterpart `target`, as it was found; a null takes the field away.

    Returns:
        None when there is nothing to say: only removals of what is not there, in a JSON patch.

    Raises:
        MappingError: a form can't hold a list or an object.
    """
    if form == "json-patch":
        operations = [*_operations(fields, target if isinstance(target, dict) else {})]
        return encode(operations) if operations else None
    if form == "form":
        return urlencode([(name, _form_text(name, value, where)) for name, value in fields.items()]).encode()
    return encode(dict(fields))


def _operations(fields: Mapping[str, Any], target: Mapping[str, Any]) -> list[dict[str, Any]]:
    """RFC 6902: `add` replaces a member that is there (§4.1), `remove` fails where there is none (§4.2)."""
    operations: list[dict[str, Any]] = []
    for name, value in fields.items():
        path = "/" + name.replace("~", "~0").replace("/", "~1")  # RFC 6901 §3
        if value is not None:
            operations.append({"op": "add", "path": path, "value": value})
        elif name in target:
            operations.append({"op": "remove", "path": path})
    return operations


def _form_text(name: str, value: object, where: str) -> str:
    if isinstance(value, dict | list):
        raise MappingError("a form holds texts and numbers, no list or object", field=f"{where}.{name}")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
