"""Answers of the API, and its description."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.metadata import version

import falcon
import msgspec
from falcon.asgi import Request, Response

from relay.destinations.preview import Preview
from relay.operations.table import Operation
from relay.web import doctor_run, openapi
from relay.web.acts.forms import ACTS, FORMS, ORDERS, ActAnswer, Reason
from relay.web.acts.plan import ActPlan
from relay.web.acts.stopping import StopOrder
from relay.web.problems import API
from relay.web.query import Number
from relay.web.reveal import RevealedPayload
from relay.web.screens import SCREENS
from relay.web.screens.commands import CommandQuery
from relay.web.screens.entity import ENTITY_DIFFERENCE, DifferenceQuery


class EventNumber(msgspec.Struct, frozen=True):
    """The event in a path."""

    seq: Number


class RevealOrder(msgspec.Struct, frozen=True):
    """Asks for the headers and body of an event. Each such request is kept with the event."""

    reason: Reason
    """Reason for looking, which everybody sees on the event's page."""


class NoParameters(msgspec.Struct, frozen=True):
    """Nothing but the path."""


def _of_act(act: Operation) -> Iterator[openapi.ApiMethod]:
    """Yield the plan of an act, and the act."""
    path = f"{API}/acts/{act.kind}"
    yield openapi.ApiMethod(
        name=f"plan_{act.kind}", title=f"{act.title}: the plan", path=path, query=FORMS[act.kind], answer=ActPlan
    )
    yield openapi.ApiMethod(
        name=act.kind,
        title=act.title,
        path=path,
        method="post",
        query=NoParameters,
        body=ORDERS[act.kind],
        body_texts=FORMS[act.kind],
        answer=ActAnswer,
        status=202,
        problems=(*openapi.ALWAYS, 409, 413),
        headers={"Location": "Path of the command."},
    )


OPERATIONS = (
    *openapi.operations_of(SCREENS),
    *(operation for act in ACTS.values() for operation in _of_act(act)),
    openapi.ApiMethod(
        name="reveal",
        title="Reveal the headers and body of an event",
        path=f"{API}/events/{{seq}}/reveal",
        method="post",
        query=EventNumber,
        body=RevealOrder,
        answer=RevealedPayload,
        problems=(*openapi.ALWAYS, 404, 413),
    ),
    *(
        openapi.ApiMethod(
            name=f"{act}_command",
            title=title,
            path=f"{API}/commands/{{id}}/{act}",
            method="post",
            query=CommandQuery,
            body=StopOrder,
            status=202,
            problems=(*openapi.ALWAYS, 404, 409, 413),
            headers={"Location": "Path of the command."},
        )
        for act, title in (("stop", "Stop a command"), ("resume", "Continue a stopped command"))
    ),
    openapi.ApiMethod(
        name="run_doctor",
        title="Run the examinations of doctor",
        path=f"{API}{doctor_run.PATH}",
        method="post",
        query=doctor_run.DoctorRunQuery,
        status=202,
        headers={"Location": "Path of the report."},
    ),
    openapi.ApiMethod(
        name="difference",
        title="Compare both sides of a sync route for an entity",
        path=f"{API}{ENTITY_DIFFERENCE}",
        query=DifferenceQuery,
        answer=Preview,
        problems=(*openapi.ALWAYS, 404),
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
            self._made = await asyncio.to_thread(self._make)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._made

    on_head = on_get

    @staticmethod
    def _make() -> bytes:
        return msgspec.json.encode(openapi.document(OPERATIONS, version("inbox-relay")))
