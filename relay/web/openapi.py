"""The API as an OpenAPI 3.1 document, made from the screens, the classes of queries and pages, the acts, and the problems."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from inspect import getsource
from types import ModuleType
from typing import Any

import falcon
import msgspec
from falcon.asgi import Request, Response
from msgspec import inspect

from inbox.errors import PageError
from inbox.events.timestamps import TIME_FORMS
from relay.destinations.preview import Preview
from relay.operations.table import Operation
from relay.web import doctor_run
from relay.web.acts.forms import ACTS, FORMS, ORDERS, ActAnswer, Reason
from relay.web.acts.plan import ActPlan
from relay.web.acts.stopping import StopOrder
from relay.web.problems import API, PROBLEM_TYPE, Problem
from relay.web.query import GivenTime, Number
from relay.web.reading import Screen
from relay.web.reveal import RevealedPayload
from relay.web.screens import SCREENS
from relay.web.screens.commands import CommandQuery
from relay.web.screens.entity import ENTITY_DIFFERENCE, DifferenceQuery


def first_line(docstring: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the strings below the fields of a class, its bases' too. Without source code there are none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ in sys.modules:
            found.update(_of_module(sys.modules[base.__module__]).get(base.__qualname__, {}))
    return found


@lru_cache(maxsize=256)
def _of_module(module: ModuleType) -> dict[str, dict[str, str]]:
    """Return the docstrings of each class at the top of a module."""
    try:
        tree = ast.parse(getsource(module))
    except (OSError, TypeError):  # compiled, or without its source
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> dict[str, str]:
    return {
        field.target.id: first_line(after.value.value)
        for field, after in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


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
    "seq": "Number of the event.",
    "id": "Its number, as lists have it.",
    "api": "Name of an api in `inbox.toml`.",
    "entity_type": "Type of the entity, such as USER.",
    "entity_id": "Id of the entity, as the source gives it.",
    "event_type": "Event type, verbatim from the sender.",
    "kind": "Kind, as lists show it.",
    "state": "State, as lists show it.",
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
ALWAYS = (400, 401, 403, 500, 503)
"""Statuses of problems that every path may answer."""
_UNNAMED = {413: "The body is larger than any that makes sense.", 500: "A bug of the page; its log has the place."}
"""Problems of the type `about:blank`."""


class ApiMethod(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path."""

    name: str
    """Unique among all."""
    title: str
    path: str
    """As Falcon has it."""
    method: str = "get"
    query: type[msgspec.Struct]
    """Its parameters, in the path and after it."""
    body: type[msgspec.Struct] | None = None
    """JSON that it takes."""
    body_texts: type[msgspec.Struct] | None = None
    """Class with the docstrings of the body's members; None: the body itself."""
    answer: type[msgspec.Struct] | None = None
    """JSON of a success; None: it has none."""
    status: int = 200
    """Status of a success."""
    problems: tuple[int, ...] = ALWAYS
    """Statuses of its problems."""
    headers: Mapping[str, str] = {}
    """Headers of a success, with their meanings."""


def operations_of(screens: Iterable[Screen]) -> Iterator[ApiMethod]:
    """Yield the operation of each screen."""
    for screen in screens:
        yield ApiMethod(
            name=screen.name.replace("-", "_"),
            title=screen.title,
            path=API + (screen.path if screen.path != "/" else "/overview"),
            query=screen.query,
            answer=screen.page,
            problems=(*ALWAYS, 404) if _PLACE.search(screen.path) else ALWAYS,
            headers={"Link": 'With rel="next", the next page; absent on the last.'} if screen.is_list else {},
        )


def document(operations: Sequence[ApiMethod], version: str) -> Json:
    """Write the document of these operations, in their order; `version` is that of Inbox Relay."""
    answers = [each.answer for each in operations if each.answer is not None]
    bodies = {each.body: each.body_texts or each.body for each in operations if each.body is not None}
    _, schemas = msgspec.json.schema_components([*answers, *bodies, Problem], schema_hook=_custom, ref_template=_REF)
    answered = _structs(inspect.multi_type_info([*answers, Problem]), set())
    schemas.update({cls.__name__: _answered(schemas[cls.__name__], cls) for cls in answered})
    schemas.update({cls.__name__: _explained(schemas[cls.__name__], texts) for cls, texts in bodies.items()})
    paths: dict[str, Json] = defaultdict(dict)
    for each in operations:
        paths[_PLACE.sub(r"{\1}", each.path)][each.method] = _operation(each)
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
        "paths": dict(paths),
        "components": {"schemas": schemas, "responses": _problems(), "securitySchemes": _SECURITY},
    }


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
            **_description(texts.get(name) or properties[name].get("description") or _EXPLAINED.get(name)),
            **({"style": "form", "explode": False} if _is_list(properties[name]) else {}),
            "schema": _given(properties[name]),
        }
        for name in sorted(fields, key=lambda name: name not in in_path)
    ]


def _is_list(schema: Json) -> bool:
    return any(each.get("type") == "array" for each in (schema, *schema.get("anyOf", ())))


def _operation(operation: ApiMethod) -> Json:
    ok: Json = {"description": first_line(operation.answer.__doc__) if operation.answer else "Done."}
    if operation.answer is not None:
        ok["content"] = _content(operation.answer)
    if operation.headers:
        ok["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in operation.headers.items()
        }
    answers = {str(operation.status): ok, **{str(status): _problem(status) for status in sorted(operation.problems)}}
    body = {} if operation.body is None else {"requestBody": {"required": True, "content": _content(operation.body)}}
    return {
        "operationId": operation.name,
        "summary": operation.title,
        "parameters": parameters(operation.query, operation.path),
        **body,
        "responses": answers,
    }


def _content(kind: type[msgspec.Struct]) -> Json:
    return {_JSON: {"schema": {"$ref": _REF.format(name=kind.__name__)}}}


def _problem(status: int) -> Json:
    return {"$ref": f"#/components/responses/Problem{status}"}


def _problems() -> Json:
    """Describe the problems of each status."""
    kinds: dict[int, list[type[PageError]]] = defaultdict(list)
    for kind in PageError.__subclasses__():
        kinds[kind.status].append(kind)
    for status in _UNNAMED:
        kinds[status] = []
    return {f"Problem{status}": _problem_answer(status, kinds[status]) for status in sorted(kinds)}


def _problem_answer(status: int, kinds: Sequence[type[PageError]]) -> Json:
    named = [f"`{kind.cause}`: {kind.title.lower()}." for kind in kinds]
    answer: Json = {
        "description": " ".join(named) or _UNNAMED[status],
        "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF.format(name=Problem.__name__)}}},
    }
    if any(kind.retry_after_seconds is not None for kind in kinds):
        answer["headers"] = {
            "Retry-After": {"description": "Seconds until the next attempt.", "schema": {"type": "integer"}}
        }
    return answer


def _custom(kind: type) -> Json:
    """Describe a class that JSON Schema does not know."""
    if kind is GivenTime:
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
    """Describe a class of answers: all members are there, without defaults, unless it leaves those out."""
    explained = _explained(schema, cls)
    if cls.__struct_config__.omit_defaults:
        return explained
    members = {
        name: {key: value for key, value in member.items() if key != "default"}
        for name, member in explained["properties"].items()
    }
    return {**explained, "properties": members, "required": list(members)}


def _explained(schema: Json, cls: type[msgspec.Struct]) -> Json:
    """Give each member its docstring."""
    texts = field_docstrings(cls)
    members = {name: {**member, **_description(texts.get(name))} for name, member in schema["properties"].items()}
    return {**schema, "properties": members}


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


class EventNumber(msgspec.Struct, frozen=True):
    """The event in a path."""

    seq: Number


class RevealOrder(msgspec.Struct, frozen=True):
    """Asks for the headers and body of an event. Each such request is kept with the event."""

    reason: Reason
    """Reason for looking, which everybody sees on the event's page."""


class NoParameters(msgspec.Struct, frozen=True):
    """Nothing but the path."""


def _of_act(act: Operation) -> Iterator[ApiMethod]:
    """Yield the plan of an act, and the act."""
    path = f"{API}/acts/{act.kind}"
    yield ApiMethod(
        name=f"plan_{act.kind}", title=f"{act.title}: the plan", path=path, query=FORMS[act.kind], answer=ActPlan
    )
    yield ApiMethod(
        name=act.kind,
        title=act.title,
        path=path,
        method="post",
        query=NoParameters,
        body=ORDERS[act.kind],
        body_texts=FORMS[act.kind],
        answer=ActAnswer,
        status=202,
        problems=(*ALWAYS, 409, 413),
        headers={"Location": "Path of the command."},
    )


OPERATIONS = (
    *operations_of(SCREENS),
    *(operation for act in ACTS.values() for operation in _of_act(act)),
    ApiMethod(
        name="reveal",
        title="Reveal the headers and body of an event",
        path=f"{API}/events/{{seq}}/reveal",
        method="post",
        query=EventNumber,
        body=RevealOrder,
        answer=RevealedPayload,
        problems=(*ALWAYS, 404, 413),
    ),
    *(
        ApiMethod(
            name=f"{act}_command",
            title=title,
            path=f"{API}/commands/{{id}}/{act}",
            method="post",
            query=CommandQuery,
            body=StopOrder,
            status=202,
            problems=(*ALWAYS, 404, 409, 413),
            headers={"Location": "Path of the command."},
        )
        for act, title in (("stop", "Stop a command"), ("resume", "Continue a stopped command"))
    ),
    ApiMethod(
        name="run_doctor",
        title="Run the examinations of doctor",
        path=f"{API}{doctor_run.PATH}",
        method="post",
        query=doctor_run.DoctorRunQuery,
        status=202,
        headers={"Location": "Path of the report."},
    ),
    ApiMethod(
        name="difference",
        title="Compare both sides of a sync route for an entity",
        path=f"{API}{ENTITY_DIFFERENCE}",
        query=DifferenceQuery,
        answer=Preview,
        problems=(*ALWAYS, 404),
    ),
)
"""Everything that the API can do."""


class ApiDocument:
    """`/api/v1/json`: the description of the API, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: bytes | None = None

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the document."""
        if self._made is None:
            self._made = await asyncio.to_thread(self._make)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._made

    on_head = on_get

    @staticmethod
    def _make() -> bytes:
        return msgspec.json.encode(document(OPERATIONS, version("inbox-relay")))
