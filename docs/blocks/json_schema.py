"""`inbox/config/inbox.schema.json`: a JSON Schema of `inbox.toml`, with which editors complete, explain and check its keys.

It is made from the classes by hand, since `msgspec.json.schema` can't encode defaults of types that TOML lacks, such as
durations, and knows no docstrings of fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec import inspect

from docs.blocks.common import extract_summary, find_added_meanings, read_field_docstrings
from inbox.config.model import Config
from inbox.config.values import Address, Age, DatabaseUrl, Duration, Network, Rate, SchemaName, Secret, TopicArn
from inbox.sources import PRESETS

_INSTANT = {"type": "string", "format": "date-time"}
_SECRET = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"value": {"type": "string"}, "not_before": _INSTANT, "not_after": _INSTANT},
            "required": ["value"],
            "additionalProperties": False,
        },
    ]
}
_CUSTOM: Mapping[type, Mapping[str, Any]] = {
    Address: {"type": "string", "examples": ["127.0.0.1:9100"]},
    Age: {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d)|forever)$", "examples": ["30d", "forever"]},
    DatabaseUrl: {"type": "string", "examples": ["sqlite:///inbox.db", "postgresql+psycopg://USER@HOST/NAME"]},
    Duration: {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", "examples": ["15s", "10m"]},
    Network: {"type": "string", "examples": ["192.0.2.0/24"]},
    Rate: {"type": "string", "pattern": "^[0-9]+/(s|m|h|d)$", "examples": ["10/s", "600/m"]},
    SchemaName: {"type": "string", "pattern": f"^{SchemaName.form.pattern}$"},
    Secret: _SECRET,
    TopicArn: {"type": "string", "pattern": f"^{TopicArn.form.pattern}$"},
}


def format_json_schema() -> str:
    """Return the schema, as the text of its file."""
    definitions: dict[str, Any] = {}
    root = _describe_struct(Config, definitions)
    definitions["Source"]["properties"]["preset"]["enum"] = sorted(PRESETS)
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "inbox.toml of Inbox Relay", **root}
    return json.dumps({**document, "$defs": dict(sorted(definitions.items()))}, indent=1, ensure_ascii=False) + "\n"


def _describe_struct(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    info = inspect.type_info(cls)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{cls.__name__} is not a table")
    meanings = {**find_added_meanings(cls), **read_field_docstrings(cls)}
    properties: dict[str, Any] = {} if info.tag is None else {str(info.tag_field): {"const": info.tag}}
    required = [] if info.tag is None else [str(info.tag_field)]
    for field in info.fields:
        if field.name == "name" and "name" not in meanings:  # the key of the table itself
            continue
        meaning = {"description": meanings[field.name]} if field.name in meanings else {}
        properties[field.encode_name] = {**_describe_type(field.type, definitions), **meaning}
        if field.required:
            required.append(field.encode_name)
    return {
        "type": "object",
        "description": extract_summary(cls.__doc__),
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _refer_to_struct(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # ends recursion
        definitions[cls.__name__] = _describe_struct(cls, definitions)
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _describe_type(kind: inspect.Type, definitions: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911  # one for each kind
    match kind:
        case inspect.StructType(cls=cls):
            return _refer_to_struct(cls, definitions)
        case inspect.CustomType(cls=cls):
            return dict(_CUSTOM[cls])
        case inspect.UnionType(types=types):
            some = [_describe_type(each, definitions) for each in types if not isinstance(each, inspect.NoneType)]
            return some[0] if len(some) == 1 else {"anyOf": some}
        case (
            inspect.ListType(item_type=item, min_length=least) | inspect.VarTupleType(item_type=item, min_length=least)
        ):
            least_items = {} if least is None else {"minItems": least}
            return {"type": "array", "items": _describe_type(item, definitions), **least_items}
        case inspect.DictType(key_type=key, value_type=value):
            names = {"propertyNames": {"enum": list(key.values)}} if isinstance(key, inspect.LiteralType) else {}
            return {"type": "object", "additionalProperties": _describe_type(value, definitions), **names}
        case inspect.LiteralType(values=values):
            return {"enum": list(values)}
        case inspect.StrType(pattern=pattern):
            anchored = {} if pattern is None else {"pattern": pattern.replace(r"\A", "^").replace(r"\Z", "$")}
            return {"type": "string", **anchored}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType(ge=low, le=high) | inspect.FloatType(ge=low, le=high):
            limits = {name: limit for name, limit in (("minimum", low), ("maximum", high)) if limit is not None}
            return {"type": "integer" if isinstance(kind, inspect.IntType) else "number", **limits}
        case _:  # any value of TOML
            return {}
