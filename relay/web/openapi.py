"""The API as an OpenAPI 3.1 document, made from the screens, the table of operations, and the problems."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.errors import PageError
from inbox.events.commands import CANCELLED_BY_STATE, REPLAYED_BY_STATE
from inbox.events.timestamps import TIME_FORMS
from relay.operations.table import OPERATIONS as KINDS
from relay.operations.table import Operation
from relay.web.acts import TIMES, ActAnswer, Submission, fields_of
from relay.web.plans import ActPlan
from relay.web.problems import API, PROBLEM_TYPE, Problem
from relay.web.query import GivenTime, Number
from relay.web.reading import Screen
from relay.web.reveal import RevealedPayload, RevealOrder
from relay.web.screens import SCREENS

Json = dict[str, Any]

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
    "routes": "`all`: also routes with nothing open.",
    "destination": "Name of a destination in `inbox.toml`.",
    "api": "Name of an api in `inbox.toml`.",
    "name": "A part of the name, in any case.",
    "status": "HTTP status.",
    "seq": "Number of the event.",
    "id": "Its number or id, as lists have it.",
    "command": "Number of the command.",
    "entity": "Id of the entity, as the source gives it.",
    "entity_type": "Type of the entity, such as USER.",
    "type": "Type of the entity, such as USER.",
    "entity_id": "Id of the entity, as the source gives it.",
    "event_type": "Event type, verbatim from the sender.",
    "error": "A part of the error, in any case.",
    "subject": "Subject of the alert, exactly as lists show it.",
    "kind": "Kind, as lists show it.",
    "state": "State, as lists show it.",
    "cause": "Cause in one word, as lists show it.",
    "view": "Form in which the body is shown once it is revealed.",
}
"""Fields that mean the same wherever they have no description of their own."""
_SECURITY: Json = {
    "token": {"type": "http", "scheme": "bearer", "description": "A token of `relay web token`."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "inbox-relay",
        "description": "The session of a person who signed in on the page; behind HTTPS it is `__Host-inbox-relay`.",
    },
}
_TIME: Json = {
    "type": "string",
    "anyOf": [{"format": "date-time"}, {"format": "date"}, {"pattern": "^[0-9]{1,5}[smhdw]$"}],
    "examples": ["2d"],
}
_ALWAYS, _OF_BODIES = (400, 401, 403, 404, 500, 503), (409, 413)
"""Statuses of problems: of every path, and of those that take a body."""
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
    asks: Json = {}
    """Schema of an object with its parameters, in the path and after it."""
    body: Json | None = None
    """Schema of the JSON that it takes."""
    answer: type[msgspec.Struct]
    """JSON of a success."""
    status: int = 200
    """Status of a success."""
    headers: Mapping[str, str] = {}
    """Headers of a success, with their meanings."""


def operations_of(screens: Iterable[Screen]) -> Iterator[ApiMethod]:
    """Yield the operation of each screen."""
    for screen in screens:
        yield ApiMethod(
            name=screen.name.replace("-", "_"),
            title=screen.title,
            path=API + (screen.path if screen.path != "/" else "/overview"),
            asks=_object(screen.query),
            answer=screen.page,
            headers={"Link": 'With rel="next", the next page; absent on the last.'} if screen.is_list else {},
        )


def _of_act(kind: Operation) -> Iterator[ApiMethod]:
    """Yield the plan of an act, and the act."""
    path, asks = f"{API}/acts/{kind.kind}", _asked(kind)
    yield ApiMethod(name=f"plan_{kind.kind}", title=f"{kind.title}: the plan", path=path, asks=asks, answer=ActPlan)
    more = _object(Submission)["properties"]
    left_out = {"again": kind.kind != "erase", "dry_run": not kind.has_dry_run}
    yield ApiMethod(
        name=kind.kind,
        title=kind.title,
        path=path,
        method="post",
        body={
            **asks,
            "properties": asks["properties"] | {name: each for name, each in more.items() if not left_out.get(name)},
            "required": [*asks["required"], "reason"],
        },
        answer=ActAnswer,
        status=202,
        headers={"Location": "Path of the command."},
    )


def _asked(kind: Operation) -> Json:
    """Describe the fields of an operation, as people and programs give them."""
    described = _object(kind.asks)
    fields = {name: described["properties"][name] for name in fields_of(kind)}
    for name in {*TIMES} & fields.keys():
        fields[name] = {**_TIME, "description": fields[name]["description"]}
    states = {"cancel": CANCELLED_BY_STATE, "replay": REPLAYED_BY_STATE}.get(kind.kind)
    if states is not None:
        fields["state"] = {"enum": list(states), "description": fields["state"]["description"]}
    return {**described, "properties": fields, "additionalProperties": False}


def _object(kind: type[msgspec.Struct]) -> Json:
    """Describe a class that is sent, each field of it with a description."""
    _, schemas = msgspec.json.schema_components([kind], schema_hook=_custom, ref_template=_REF)
    schema = schemas[kind.__name__]
    fields = {
        name: {**each, "description": each.get("description") or _EXPLAINED.get(name, "")}
        for name, each in schema["properties"].items()
    }
    return {"type": "object", "properties": fields, "required": schema["required"]}


def _custom(kind: type) -> Json:
    """Describe a class that JSON Schema does not know."""
    if kind is GivenTime:
        return {**_TIME, "description": f"Give {TIME_FORMS}."}
    raise NotImplementedError(kind)


def document(operations: Sequence[ApiMethod], version: str) -> Json:
    """Write the document of these operations, in their order; `version` is that of Inbox Relay."""
    answers = [each.answer for each in operations]
    _, schemas = msgspec.json.schema_components([*answers, Problem], schema_hook=_custom, ref_template=_REF)
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
        "components": {
            "schemas": {name: each if name == "Problem" else _answered(each) for name, each in schemas.items()},
            "responses": dict(_problems()),
            "securitySchemes": _SECURITY,
        },
    }


def _answered(schema: Json) -> Json:
    """Describe a class of answers: all members are there, without defaults."""
    members = {
        name: {key: value for key, value in member.items() if key != "default"}
        for name, member in schema["properties"].items()
    }
    return {**schema, "properties": members, "required": list(members)}


def _operation(operation: ApiMethod) -> Json:
    ok: Json = {
        "description": " ".join((operation.answer.__doc__ or "").split("\n\n")[0].split()),
        "content": {"application/json": {"schema": {"$ref": _REF.format(name=operation.answer.__name__)}}},
        "headers": {name: _header(text, "string") for name, text in operation.headers.items()},
    }
    statuses = sorted((*_ALWAYS, *(() if operation.body is None else _OF_BODIES)))
    problems = {str(each): {"$ref": f"#/components/responses/Problem{each}"} for each in statuses}
    body = {"required": True, "content": {"application/json": {"schema": operation.body}}}
    return {
        "operationId": operation.name,
        "summary": operation.title,
        "parameters": list(_parameters(operation)),
        **({} if operation.body is None else {"requestBody": body}),
        "responses": {str(operation.status): ok, **problems},
    }


def _parameters(operation: ApiMethod) -> Iterator[Json]:
    """Describe the parameters: those in the path, then those after it."""
    in_path, fields = set(_PLACE.findall(operation.path)), operation.asks.get("properties", {})
    for name in sorted(fields, key=lambda name: name not in in_path):
        schema = _given(fields[name])
        yield {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in in_path or name in operation.asks["required"],
            "description": schema.pop("description"),
            **({"style": "form", "explode": False} if schema["type"] == "array" else {}),
            "schema": schema,
        }


def _given(schema: Json) -> Json:
    """Describe a parameter that is given: it is never null, and its default is that of an absent one."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    given = {name: value for name, value in schema.items() if name != "anyOf" and value is not None}
    described = {**kinds[0], **given} if len(kinds) == 1 else given | ({"anyOf": kinds} if kinds else {})
    return {"type": "string", **described} if "enum" in described else described


def _header(text: str, kind: str) -> Json:
    return {"description": text, "schema": {"type": kind}}


def _problems() -> Iterator[tuple[str, Json]]:
    """Describe the problems of each status."""
    kinds: dict[int, list[type[PageError]]] = defaultdict(list, {status: [] for status in _UNNAMED})
    for kind in PageError.__subclasses__():
        kinds[kind.status].append(kind)
    for status, named in sorted(kinds.items()):
        waits = any(kind.retry_after_seconds is not None for kind in named)
        yield (
            f"Problem{status}",
            {
                "description": " ".join(f"`{each.cause}`: {each.title.lower()}." for each in named) or _UNNAMED[status],
                "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF.format(name=Problem.__name__)}}},
                "headers": {"Retry-After": _header("Seconds until the next attempt.", "integer")} if waits else {},
            },
        )


class EventNumber(msgspec.Struct, frozen=True):
    """The event in a path."""

    seq: Number


OPERATIONS = (
    *operations_of(SCREENS),
    *(method for kind in KINDS.values() for method in _of_act(kind)),
    ApiMethod(
        name="reveal",
        title="Reveal the headers and body of an event",
        path=f"{API}/events/{{seq}}/reveal",
        method="post",
        asks=_object(EventNumber),
        body=_object(RevealOrder),
        answer=RevealedPayload,
    ),
)
"""Everything that the API can do."""


class ApiDocument:
    """`/api/v1/openapi.json`: the description of the API, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: bytes | None = None

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the document."""
        if self._made is None:
            made = await asyncio.to_thread(document, OPERATIONS, version("inbox-relay"))
            self._made = msgspec.json.encode(made)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._made

    on_head = on_get
