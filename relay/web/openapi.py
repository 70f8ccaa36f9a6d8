"""The API as an OpenAPI 3.1 document, generated from the screens, the operations and the problems."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from falcon.asgi import Request, Response

from relay.operations.table import OPERATIONS, Operation
from relay.web.acts import ActAnswer, Submission, list_fields
from relay.web.plans import ActPlan
from relay.web.problems import API, PROBLEM_TYPE, Problem
from relay.web.query import TIMES
from relay.web.reading import Screen
from relay.web.reveal import EditAnswer, EditOrder, RevealedPayload, RevealOrder
from relay.web.screens import SCREENS
from relay.web.screens.event import EventQuery

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"{([a-z_]+)}")
_DESCRIPTION = "Everything on the operator's page. Times are RFC 3339 in UTC; bytes are base64, digests hexadecimal."
_TIME: Json = {
    "type": "string",
    "anyOf": [{"format": "date-time"}, {"format": "date"}, {"pattern": "^[0-9]{1,5}[smhdw]$"}],
    "examples": ["2d"],
}


def document(screens: Iterable[Screen]) -> Json:
    """Describe these screens, every act and the reveal."""
    paths: dict[str, Json] = {}
    answers = [ActPlan, ActAnswer, RevealedPayload, EditAnswer, Problem]
    for screen in screens:
        answers.append(screen.page)
        path = API + (screen.path if screen.path != "/" else "/overview")
        given = _describe_parameters(_describe_request(screen.query), path)
        paths[path] = {"get": _describe_method(screen.name, screen.title, screen.page, given)}
    for kind in OPERATIONS.values():
        paths[f"{API}/acts/{kind.kind}"] = _describe_acts(kind)
    for name, title, order, answer in (
        ("reveal", "Reveal the headers and body of an event", RevealOrder, RevealedPayload),
        ("edit", "Store an edited body of an event, for a replay", EditOrder, EditAnswer),
    ):
        path = f"{API}/events/{{seq}}/{name}"
        seq, body = _describe_parameters(_describe_request(EventQuery), path), _describe_request(order)
        paths[path] = {"post": _describe_method(name, title, answer, seq, body=body)}
    _, schemas = msgspec.json.schema_components(answers, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inbox Relay",
            "version": version("inbox-relay"),
            "description": _DESCRIPTION,
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {
                name: each if name == "Problem" else _describe_response(each) for name, each in schemas.items()
            },
            "responses": {
                "Problem": {
                    "description": _read_text(Problem),
                    "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
                }
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token made by `relay web token`."}
            },
        },
    }


def _describe_method(
    name: str,
    title: str,
    answer: type[msgspec.Struct],
    parameters: Iterable[Json],
    *,
    body: Json | None = None,
    status: int = 200,
) -> Json:
    """Describe one method of one path.

    Args:
        name: id of the method, unique in the document.
        title: summary of the method.
        answer: type of the JSON on success.
        parameters: parameters of the path and the query.
        body: schema of the JSON body.
        status: status on success.
    """
    ok: Json = {
        "description": _read_text(answer),
        "content": {"application/json": {"schema": {"$ref": _REF.format(name=answer.__name__)}}},
    }
    taken = {"required": True, "content": {"application/json": {"schema": body}}}
    return {
        "operationId": name,
        "summary": title,
        "parameters": list(parameters),
        **({} if body is None else {"requestBody": taken}),
        "responses": {str(status): ok, "default": {"$ref": "#/components/responses/Problem"}},
    }


def _read_text(kind: type[msgspec.Struct]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _describe_acts(kind: Operation) -> Json:
    """Describe the plan of an act, and the act."""
    asks, more = _describe_request(kind.asks), _describe_request(Submission)["properties"]
    asks["properties"] = {name: asks["properties"][name] for name in list_fields(kind)}
    body = {**asks, "properties": asks["properties"] | more, "required": [*asks["required"], "reason"]}
    return {
        "get": _describe_method(f"plan_{kind.kind}", f"{kind.title}: the plan", ActPlan, _describe_parameters(asks)),
        "post": _describe_method(kind.kind, kind.title, ActAnswer, (), body=body, status=202),
    }


def _describe_request(kind: type[msgspec.Struct]) -> Json:
    """Describe a class of requests."""
    _, schemas = msgspec.json.schema_components([kind], ref_template=_REF)
    schema = schemas[kind.__name__]
    fields = {name: _describe_field(name, each) for name, each in schema["properties"].items()}
    return {"type": "object", "properties": fields, "required": schema["required"], "additionalProperties": False}


def _describe_field(name: str, schema: Json) -> Json:
    """Describe a field of a request. It is never null, and the default of an absent field is omitted."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    given = {key: value for key, value in schema.items() if key != "anyOf" and value is not None}
    described = {**kinds[0], **given} if kinds else given
    if name in TIMES:
        return {**_TIME, **{key: value for key, value in described.items() if key == "description"}}
    return {"type": "string", **described} if "enum" in described else described


def _describe_response(schema: Json) -> Json:
    """Describe a class of responses: all members are present, without defaults."""
    members = {
        name: {key: value for key, value in member.items() if key != "default"}
        for name, member in schema["properties"].items()
    }
    return {**schema, "properties": members, "required": list(members)}


def _describe_parameters(asks: Json, path: str = "") -> Iterator[Json]:
    """Describe the fields of an object as parameters: first those of the path, then those of the query."""
    in_path, fields = set(_PLACE.findall(path)), asks["properties"]
    for name in sorted(fields, key=lambda name: name not in in_path):
        schema = dict(fields[name])
        yield {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in in_path or name in asks["required"],
            **({"description": schema.pop("description")} if "description" in schema else {}),
            **({"style": "form", "explode": False} if schema["type"] == "array" else {}),
            "schema": schema,
        }


@cache
def _made() -> Json:
    return document(SCREENS)


class ApiDocument:
    """`/api/v1/openapi.json`: the description of the API, made on the first request."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Respond with the document."""
        resp.media = _made()

    on_head = on_get
