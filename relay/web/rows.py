"""Types of rows: a row of a table or view in an answer, as the API describes it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Integer, Text

from inbox.db.columns import JsonValue, TextList, UtcDateTime
from inbox.db.schema import metadata
from inbox.db.view_comments import VIEWS

Schema = dict[str, Any]

AnyMembers = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema={"additionalProperties": True})]
"""An object with any members, such as the selection of a command."""

_WHOLE: Schema = {"type": "integer"}
_TEXT: Schema = {"type": "string"}
_YES_OR_NO: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_FRACTION: Schema = {"type": "number"}
_NAMES: Schema = {"type": "array", "items": _TEXT}
_HEX: Schema = {"type": "string", "pattern": "^[0-9a-f]*$"}

_FORMS = {BigInteger: _WHOLE, Integer: _WHOLE, Text: _TEXT, Boolean: _YES_OR_NO, UtcDateTime: _TIME}
_OF_VIEWS: dict[str, Schema] = {
    **dict.fromkeys(("is_pruned", "is_erased", "is_finding", "is_silent"), _YES_OR_NO),
    **dict.fromkeys(("oldest_age_seconds", "silent_seconds", "for_seconds", "per_second"), _FRACTION),
    **dict.fromkeys(
        ("health", "finding", "why", "what", "summary", "last_fact", "last_error", "table_name", "role", "application"),
        _TEXT,
    ),
    **dict.fromkeys(("waits_for", "query", "holds_back"), _TEXT),
    "routes": _NAMES,
}
"""Columns that views compute. Those with a name of a table's column have its type, those that end in `_at` are times, and all
others are whole numbers: a test compares them with a database."""


def rows_of(name: str, *without: str, **added: Schema) -> msgspec.Meta:
    """Describe a row of a table or view, as the annotation of a `Row`.

    Args:
        name: The table or view.
        without: Columns that the answer leaves out.
        added: Schemas of members that the answer adds.
    """
    columns = _columns(name)
    wrong = set(without) - columns.keys()
    if wrong:
        raise ValueError(f"{name} has no column {', '.join(sorted(wrong))}")
    properties = {column: schema for column, schema in columns.items() if column not in without} | added
    return msgspec.Meta(
        extra_json_schema={"properties": properties, "required": list(properties), "additionalProperties": False}
    )


def _columns(name: str) -> dict[str, Schema]:
    """Return the schema of each column of a table or view."""
    if (table := metadata.tables.get(name)) is not None:
        return {str(column.name): _of_column(column) for column in table.columns}
    view = next(each for each in VIEWS if each.name == name)
    return {column: _explained(_nullable(_of_view_column(column)), text) for column, text in view.columns.items()}


def _of_column(column: Column[Any]) -> Schema:
    form = _form(column)
    return _explained(_nullable(form) if column.nullable else form, column.comment or "")


def _form(column: Column[Any]) -> Schema:
    if column.name == "body_sha256":
        return _HEX
    if column.type is JsonValue:
        return {}
    if column.type is TextList:
        return _NAMES
    return next((form for kind, form in _FORMS.items() if isinstance(column.type, kind)), _TEXT)


def _of_view_column(name: str) -> Schema:
    if name in _OF_VIEWS:
        return _OF_VIEWS[name]
    if name.endswith("_at"):
        return _TIME
    return _OF_TABLES.get(name, _WHOLE)


_OF_TABLES = {column.name: _form(column) for table in metadata.tables.values() for column in table.columns}


def _nullable(form: Schema) -> Schema:
    return {**form, "type": [form["type"], "null"]} if "type" in form else form


def _explained(form: Schema, text: str) -> Schema:
    return {**form, "description": text} if text else form
