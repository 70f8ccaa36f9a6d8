"""The API as an OpenAPI 3.1 document, made from the screens, the classes of queries and pages, and the problems. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from inbox.errors import PageError
from inbox.events.timestamps import TIME_FORMS
from relay.web.docstrings import field_docstrings, first_line
from relay.web.problems import API, PROBLEM_TYPE, Problem
from relay.web.query import When
from relay.web.screen import Screen

Json = dict[str, Any]

_JSON = "application/json"
_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"{([a-z_]+)(?::[^}]*)?}")
_DESCRIPTION = (
    "Everything that the operator's page shows and does. Times are RFC 3339 in UTC; bytes are base64, digests hexadecimal. "
    "A value in a path has `~2F` for `/`, `~5C` for a backslash, `~7E` for `~`, and a lone `~` for an empty value."
)
_EXPLAINED = {
    "before": "Only rows below this one: the member `before` of the page before.",
    "limit": "Most rows of a page.",
    "since": "Only what happened at or after this time.",
    "until": "Only what happened before this time.",
    "source": "Name of a source in `inbox.toml`.",
    "route": "Name of a route in `inbox.toml`.",
    "destination": "Name of a destination in `inbox.toml`.",
    "status": "HTTP status.",
    "cause": "Cause in one word, as lists show it.",
}
"""Parameters that mean the same wherever a query has no docstring of its own for them."""
_SECURITY: Json = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token of `relay web token`."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "inbox-relay",
        "description": "The session of a person who signed in on the page; behind HTTPS it is `__Host-inbox-relay`.",
    },
}
_ALWAYS = (400, 401, 403, 500, 503)
"""Statuses of problems that every path may answer."""


def document(screens: Sequence[Screen], version: str) -> Json:
    """Write the document of these screens.

    Args:
        screens: In the order of the document.
        version: Version of Inbox Relay.
    """
    pages = [screen.page for screen in screens]
    references, schemas = msgspec.json.schema_components([*pages, Problem], schema_hook=_custom, ref_template=_REF)
    answers = dict(zip(pages, references, strict=False))
    classes = {cls.__name__: cls for cls in _structs(inspect.multi_type_info([*pages, Problem]), set())}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inbox Relay",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _SECURITY],
        "paths": {api_path(screen): {"get": _operation(screen, answers[screen.page])} for screen in screens},
        "components": {
            "schemas": {
                name: _answered(schema, classes[name]) if name in classes else schema
                for name, schema in schemas.items()
            },
            "responses": _problems(),
            "securitySchemes": _SECURITY,
        },
    }


def api_path(screen: Screen) -> str:
    """Return the path of a screen in the API, with its parts in braces."""
    return API + _PLACE.sub(r"{\1}", screen.path if screen.path != "/" else "/overview")


def parameters(kind: type[msgspec.Struct], path: str) -> list[Json]:
    """Describe the parameters of a query: those in the path, then those after it."""
    in_path = set(_PLACE.findall(path))
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    texts = field_docstrings(kind)
    (_, schemas) = msgspec.json.schema_components([kind], schema_hook=_custom, ref_template=_REF)
    properties = schemas[kind.__name__]["properties"]
    return [
        {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in in_path or fields[name].required,
            **_description(texts.get(name) or _EXPLAINED.get(name)),
            "schema": _given(properties[name]),
        }
        for name in sorted(fields, key=lambda name: name not in in_path)
    ]


def _operation(screen: Screen, answer: Json) -> Json:
    statuses = [*_ALWAYS, *([404] if _PLACE.search(screen.path) else [])]
    ok: Json = {
        "description": first_line(screen.page.__doc__),
        "content": {_JSON: {"schema": answer}},
    }
    if screen.is_list:
        ok["headers"] = {
            "Link": {
                "description": 'With rel="next", the next page; absent on the last.',
                "schema": {"type": "string"},
            }
        }
    return {
        "operationId": screen.name.replace("-", "_"),
        "summary": screen.title,
        "parameters": parameters(screen.query, screen.path),
        "responses": {"200": ok, **{str(status): _problem(status) for status in sorted(statuses)}},
    }


def _problem(status: int) -> Json:
    return {"$ref": f"#/components/responses/Problem{status}"}


def _problems() -> Json:
    """Describe the problems of each status."""
    kinds: dict[int, list[type[PageError]]] = defaultdict(list)
    for kind in PageError.__subclasses__():
        kinds[kind.status].append(kind)
    kinds[500] = []
    return {f"Problem{status}": _problem_answer(kinds[status]) for status in sorted(kinds)}


def _problem_answer(kinds: Iterable[type[PageError]]) -> Json:
    named = [f"`{kind.cause}`: {kind.title.lower()}." for kind in kinds]
    answer: Json = {
        "description": " ".join(named) or "A bug of the page; its log has the place.",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF.format(name=Problem.__name__)}}},
    }
    if any(kind.retry_after_seconds is not None for kind in kinds):
        answer["headers"] = {
            "Retry-After": {"description": "Seconds until the next attempt.", "schema": {"type": "integer"}}
        }
    return answer


def _custom(kind: type) -> Json:
    """Describe a class that JSON Schema does not know."""
    if kind is When:
        return {
            "type": "string",
            "anyOf": [{"format": "date-time"}, {"format": "date"}, {"pattern": "^[0-9]{1,5}[smhdw]$"}],
            "description": f"Give {TIME_FORMS}.",
            "examples": ["2d"],
        }
    raise NotImplementedError(kind)


def _given(schema: Json) -> Json:
    """Describe a parameter that is given: it is never null, and its default is that of an absent one."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    given = {name: value for name, value in schema.items() if name != "anyOf" and value is not None}
    described = {**kinds[0], **given} if len(kinds) == 1 else given | ({"anyOf": kinds} if kinds else {})
    return {"type": "string", **described} if "enum" in described else described


def _answered(schema: Json, cls: type[msgspec.Struct]) -> Json:
    """Describe a class of answers: each member with its docstring, and all are there unless it leaves defaults out."""
    texts = field_docstrings(cls)
    members = {
        name: {**{key: value for key, value in member.items() if key != "default"}, **_description(texts.get(name))}
        for name, member in schema["properties"].items()
    }
    required = schema["required"] if cls.__struct_config__.omit_defaults else list(members)
    return {**schema, "properties": members, "required": required}


def _description(text: str | None) -> Json:
    return {"description": re.sub(r"\bNone\b", "null", text)} if text else {}


def _structs(kinds: Iterable[inspect.Type], seen: set[type]) -> Iterator[type[msgspec.Struct]]:
    """Yield the classes in these types and in their fields, each once."""
    for kind in kinds:
        match kind:
            case inspect.StructType(cls=cls, fields=fields) if cls not in seen:
                seen.add(cls)
                yield cls
                yield from _structs((field.type for field in fields), seen)
            case inspect.UnionType(types=types) | inspect.TupleType(item_types=types):
                yield from _structs(types, seen)
            case inspect.ListType(item_type=inner) | inspect.VarTupleType(item_type=inner):
                yield from _structs((inner,), seen)
            case inspect.DictType(value_type=inner) | inspect.Metadata(type=inner):
                yield from _structs((inner,), seen)
