"""The API as an OpenAPI 3.1 document, made from the screens, the table of operations, and the problems."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.events.states import CANCELLED_BY_STATE, REPLAYED_BY_STATE
from inbox.events.timestamps import TIME_FORMS
from relay.operations.table import OPERATIONS, Operation
from relay.web.acts import TIMES, ActAnswer, Submission, fields_of
from relay.web.plans import ActPlan
from relay.web.problems import API, PROBLEM_TYPE, Problem
from relay.web.query import GivenTime
from relay.web.reading import ListPage, Screen
from relay.web.reveal import RevealedPayload, RevealOrder
from relay.web.screens import SCREENS
from relay.web.screens.event import EventQuery

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"{([a-z_]+)}")
_DESCRIPTION = (
    "Everything that the page shows and does. Times are RFC 3339 in UTC; bytes are base64, digests hexadecimal."
)
_EXPLAINED = {
    "before": "Only rows below this one: the member `before` of the page before.",
    "limit": "Most rows of a page.",
    "since": "Only what happened at or after this time.",
    "until": "Only what happened before this time.",
    "name": "A part of the name, in any case.",
    "error": "A part of the error, in any case.",
    "event_type": "Event type, verbatim from the sender.",
}
"""Fields that mean the same wherever they have no description of their own. Any other is given as answers show it."""
_TIME: Json = {
    "type": "string",
    "anyOf": [{"format": "date-time"}, {"format": "date"}, {"pattern": "^[0-9]{1,5}[smhdw]$"}],
    "examples": ["2d"],
}


def document(screens: Iterable[Screen], version: str) -> Json:
    """Write the document of these screens, and of every act and the reveal; `version` is that of Inbox Relay."""
    paths: dict[str, Json] = {}
    answers = [ActPlan, ActAnswer, RevealedPayload, Problem]
    for screen in screens:
        answers.append(screen.page)
        path = API + (screen.path if screen.path != "/" else "/overview")
        headers = {"Link": 'With rel="next", the next page; absent on the last.'}
        paths[path] = {
            "get": _operation(
                screen.name,
                screen.title,
                screen.page,
                _parameters(_object(screen.query), path),
                headers=headers if issubclass(screen.page, ListPage) else {},
            )
        }
    for kind in OPERATIONS.values():
        paths[f"{API}/acts/{kind.kind}"] = _acts(kind)
    path = f"{API}/events/{{seq}}/reveal"
    seq, body = _parameters(_object(EventQuery), path), _object(RevealOrder)
    title = "Reveal the headers and body of an event"
    paths[path] = {"post": _operation("reveal", title, RevealedPayload, seq, body=body)}
    _, schemas = msgspec.json.schema_components(answers, schema_hook=_custom, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inbox Relay",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {name: each if name == "Problem" else _answered(each) for name, each in schemas.items()},
            "responses": {
                "Problem": {
                    "description": _text_of(Problem),
                    "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
                    "headers": {"Retry-After": _header("Seconds until the next attempt.", "integer")},
                }
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of `relay web token`."}
            },
        },
    }


def _operation(
    name: str,
    title: str,
    answer: type[msgspec.Struct],
    parameters: Iterable[Json],
    *,
    body: Json | None = None,
    status: int = 200,
    headers: Mapping[str, str] = {},
) -> Json:
    """Describe one method of one path.

    Args:
        name: unique among all.
        title: its summary.
        answer: JSON of a success.
        parameters: in the path and after it.
        body: schema of the JSON that it takes.
        status: of a success.
        headers: of a success, with their meanings.
    """
    ok: Json = {
        "description": _text_of(answer),
        "content": {"application/json": {"schema": {"$ref": _REF.format(name=answer.__name__)}}},
        "headers": {name: _header(text, "string") for name, text in headers.items()},
    }
    taken = {"required": True, "content": {"application/json": {"schema": body}}}
    return {
        "operationId": name,
        "summary": title,
        "parameters": list(parameters),
        **({} if body is None else {"requestBody": taken}),
        "responses": {str(status): ok, "default": {"$ref": "#/components/responses/Problem"}},
    }


def _text_of(kind: type[msgspec.Struct]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _header(text: str, kind: str) -> Json:
    return {"description": text, "schema": {"type": kind}}


def _acts(kind: Operation) -> Json:
    """Describe the plan of an act, and the act."""
    described = _object(kind.asks)
    fields = {name: described["properties"][name] for name in fields_of(kind)}
    for name in {*TIMES} & fields.keys():
        fields[name] = {**_TIME, "description": fields[name]["description"]}
    states = {"cancel": CANCELLED_BY_STATE, "replay": REPLAYED_BY_STATE}.get(kind.kind)
    if states is not None:
        fields["state"] = {"enum": list(states), "description": fields["state"]["description"]}
    asks = {**described, "properties": fields, "additionalProperties": False}
    left_out = {"again": kind.kind != "erase", "dry_run": not kind.has_dry_run}
    more = {name: each for name, each in _object(Submission)["properties"].items() if not left_out.get(name)}
    body = {**asks, "properties": fields | more, "required": [*asks["required"], "reason"]}
    return {
        "get": _operation(f"plan_{kind.kind}", f"{kind.title}: the plan", ActPlan, _parameters(asks)),
        "post": _operation(
            kind.kind, kind.title, ActAnswer, (), body=body, status=202, headers={"Location": "Path of the command."}
        ),
    }


def _object(kind: type[msgspec.Struct]) -> Json:
    """Describe a class that is sent, each field of it with a description."""
    _, schemas = msgspec.json.schema_components([kind], schema_hook=_custom, ref_template=_REF)
    schema = schemas[kind.__name__]
    fields = {
        name: {**each, "description": each.get("description") or _EXPLAINED.get(name, "Exactly as answers show it.")}
        for name, each in schema["properties"].items()
    }
    return {"type": "object", "properties": fields, "required": schema["required"]}


def _custom(kind: type) -> Json:
    """Describe a class that JSON Schema does not know."""
    if kind is GivenTime:
        return {**_TIME, "description": f"Give {TIME_FORMS}."}
    raise NotImplementedError(kind)


def _answered(schema: Json) -> Json:
    """Describe a class of answers: all members are there, without defaults."""
    members = {
        name: {key: value for key, value in member.items() if key != "default"}
        for name, member in schema["properties"].items()
    }
    return {**schema, "properties": members, "required": list(members)}


def _parameters(asks: Json, path: str = "") -> Iterator[Json]:
    """Describe the fields of an object as parameters: those in the path, then those after it."""
    in_path, fields = set(_PLACE.findall(path)), asks["properties"]
    for name in sorted(fields, key=lambda name: name not in in_path):
        schema = _given(fields[name])
        yield {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in in_path or name in asks["required"],
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


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document(SCREENS, version("inbox-relay")))


class ApiDocument:
    """`/api/v1/openapi.json`: the description of the API, made when it is first asked for."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the document."""
        resp.content_type, resp.data = falcon.MEDIA_JSON, await asyncio.to_thread(_encoded)

    on_head = on_get
