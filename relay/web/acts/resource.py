"""Acts over HTTP: a plan with a form, and its confirmation, which inserts one row of `relay_command`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import falcon
import falcon.asgi
import msgspec
from falcon.asgi import Request, Response
from sqlalchemy.exc import DBAPIError

from inbox.clock import Clock
from inbox.db.dialect import is_data_error
from inbox.db.erasure import ErasureSubject
from inbox.errors import BadFilter, NothingThere, PageError, PlanChanged
from relay.accounts import Actor
from relay.operations.table import OF_DELIVERIES, OF_GATES, Operation
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.commands import CommandAct
from relay.web import render
from relay.web.acts import deliveries, others
from relay.web.acts.forms import (
    ACTS,
    FORMS,
    ORDERS,
    ActAnswer,
    Given,
    Submission,
    checked_reason,
    read,
    require_storable,
)
from relay.web.acts.once import OnceOnly
from relay.web.acts.plan import ActPlan, agrees
from relay.web.acts.requests import CHOSEN, fields_of_chosen, one_each, read_json, require_operator
from relay.web.acts.stopping import CommandResource
from relay.web.problems import API, set_status
from relay.web.query import Number, convert, encode, of_path, parse, read_form
from relay.web.reading import Readers, Reading

PLANS: Mapping[str, Callable[[Reading, str, Given], ActPlan]] = {
    **dict.fromkeys(OF_DELIVERIES, deliveries.plan),
    **dict.fromkeys(OF_GATES, others.plan_gate),
    "sweep": others.plan_sweep,
    "prune": others.plan_prune,
    "erase": others.plan_erase,
    "readmit": others.plan_readmit,
}
"""Makes the plan of each kind. Raises BadFilter."""


class Acts:
    """Plans acts and inserts their commands; the page and the API share it."""

    def __init__(self, readers: Readers, clock: Clock) -> None:
        self._readers, self.clock = readers, clock
        self._once = OnceOnly()

    async def plan(self, actor: Actor, kind: Operation, form: msgspec.Struct) -> ActPlan:
        """Make the plan of now."""
        return await self._readers.read(
            actor, lambda reading: PLANS[kind.kind](reading, kind.kind, read(kind, form)), kind="acts"
        )

    async def ask(self, actor: Actor, kind: Operation, form: msgspec.Struct, sent: Submission) -> int:
        """Insert the command as it was agreed to. Returns its id; sent twice with one key, it is the same command.

        Raises:
            BadFilter: the reason or another field is missing or wrong.
            PlanChanged: the plan is no longer the one that was shown, or there is nothing to do.
        """
        reason = checked_reason(sent.reason)
        require_storable({**msgspec.structs.asdict(form), "reason": reason})

        async def make() -> int:
            return await self._insert(actor, kind, form, msgspec.structs.replace(sent, reason=reason))

        if not sent.key:
            return await make()
        content = encode([kind.kind, msgspec.structs.replace(sent, key=None, plan=None), form])
        return await self._once.run(f"{actor.name}\n{sent.key}", content, make)

    async def _insert(self, actor: Actor, kind: Operation, form: msgspec.Struct, sent: Submission) -> int:
        planned = await self.plan(actor, kind, form)
        _check(kind, read(kind, form), planned, sent)

        def insert(database: Database) -> int:
            return commands.ask(
                database,
                kind.kind,
                planned.selection,
                who=actor.name,
                why=sent.reason,
                dry_run=sent.dry_run,
                planned=planned.count if planned.is_whole and not sent.dry_run else None,
            )

        try:
            return await self._readers.write(insert)
        except DBAPIError as error:
            if not is_data_error(error):
                raise
            raise BadFilter(f"the database rejects the command: {_first_line(error)}") from error


def _check(kind: Operation, given: Given, planned: ActPlan, sent: Submission) -> None:
    if sent.dry_run and not kind.has_dry_run:
        raise BadFilter(f"{kind.kind} has no dry run", field="dry_run")
    if planned.needs_everything and not given.everything:
        raise BadFilter("no condition narrows this: confirm that everything is meant", field="everything")
    if kind.kind == "erase":
        subject = ErasureSubject(**planned.selection)
        if given.again != subject.entity_id and not sent.dry_run:
            raise BadFilter("type the entity's id again: nothing brings an erased entity back", field="again")
        if subject.is_named_in(sent.reason):
            raise BadFilter("the reason names the entity, and it is kept for good", field="reason")
    if planned.obstacle is not None:
        raise PlanChanged(planned.obstacle)
    if sent.plan is not None and not agrees(sent.plan, planned.plan):
        raise PlanChanged(
            "it is no longer the plan that was shown; nothing was done. Look at it again, then confirm it"
        )


def _first_line(error: DBAPIError) -> str:
    lines = str(error.orig).splitlines()
    return lines[0] if lines else "it gives no reason"


def _kind(name: str) -> Operation:
    if name not in ACTS:
        raise NothingThere(f"there is no act {name!r}; there are {', '.join(ACTS)}")
    return ACTS[name]


_NOTHING: Mapping[str, Any] = {
    "problem": None,
    "page": None,
    "form": None,
    "given": {},
    "hidden": {},
    "reason": "",
    "again": None,
}
"""Values of the template that a page may do without."""


class ActPage:
    """`/acts/KIND`: the plan, and the form that confirms it."""

    def __init__(self, acts: Acts, renderer: render.Renderer) -> None:
        self._acts, self._renderer = acts, renderer

    async def on_get(self, req: Request, resp: Response, kind: str) -> None:
        """Show the plan of a selection. One that makes no sense is shown with what is wrong.

        Chosen rows get a URL of their own.
        """
        actor, act = require_operator(req), _kind(kind)
        if CHOSEN in req.params:
            raise falcon.HTTPSeeOther(f"/acts/{act.kind}?{urlencode(fields_of_chosen(req.params[CHOSEN]))}")
        given = one_each(req.params)
        given.pop("live", None)
        await self._show(resp, actor, act, given)

    async def on_post(self, req: Request, resp: Response, kind: str) -> None:
        """Insert the command and show it; otherwise show the plan of now with what is in the way."""
        actor, act = require_operator(req), _kind(kind)
        given = await read_form(req)
        sent = Submission(given.pop("reason", ""), given.pop("plan", "-"), given.pop("key", None))
        try:
            number = await self._acts.ask(actor, act, parse(FORMS[act.kind], given, self._acts.clock.now()), sent)
        except PageError as error:
            if isinstance(error, PlanChanged):
                given.pop("as_of", None)  # what is new is shown, too
            await self._show(resp, actor, act, given, problem=error, sent=sent)
            return
        resp.status = HTTPStatus.SEE_OTHER
        resp.location = f"/commands/{number}"

    async def _show(
        self,
        resp: Response,
        actor: Actor,
        act: Operation,
        given: dict[str, str],
        *,
        problem: PageError | None = None,
        sent: Submission | None = None,
    ) -> None:
        planned, form = None, None
        try:
            form = parse(FORMS[act.kind], given, self._acts.clock.now())
            planned = await self._acts.plan(actor, act, form)
        except PageError as error:
            problem = problem or error
        if problem is not None:
            set_status(resp, problem)
        hidden = {} if planned is None else _hidden(given, planned)
        reason = "" if sent is None else sent.reason
        again = sent if planned is None and form is not None else None
        self._write(
            resp,
            actor,
            act,
            form=form,
            hidden=hidden,
            page=planned,
            given=given,
            reason=reason,
            again=again,
            problem=problem,
        )

    def _write(self, resp: Response, actor: Actor, act: Operation, **values: object) -> None:
        resp.content_type = render.TYPE
        resp.text = self._renderer.render(
            "act.html",
            now=self._acts.clock.now(),
            title=act.title,
            here=f"/acts/{act.kind}",
            act=act,
            key=secrets.token_hex(16),
            actor=actor,
            **{**_NOTHING, **values},
        )


def _hidden(given: Mapping[str, str], planned: ActPlan) -> dict[str, str]:
    """Return the fields that the form sends back: the selection with absolute times, so that it means the same then."""
    shown = {name: value for name, value in given.items() if name not in {"everything", "again", "as_of"} and value}
    for name in {"since", "until"} & shown.keys():
        shown[name] = str(planned.selection.get(name, shown[name]))
    if planned.as_of is not None:
        shown["as_of"] = planned.as_of
    return shown


class ActApi:
    """`/api/v1/acts/KIND`: the plan as JSON, and the command by a JSON body."""

    def __init__(self, acts: Acts) -> None:
        self._acts = acts

    async def on_get(self, req: Request, resp: Response, kind: str) -> None:
        """Answer with the plan of the selection that the parameters give."""
        actor, act = require_operator(req), _kind(kind)
        form = parse(FORMS[act.kind], one_each(req.params), self._acts.clock.now())
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(await self._acts.plan(actor, act, form))

    async def on_post(self, req: Request, resp: Response, kind: str) -> None:
        """Insert the command, and answer 202 with its id."""
        actor, act = require_operator(req), _kind(kind)
        body = await read_json(req)
        order = convert(ORDERS[act.kind], body, self._acts.clock.now(), strict=True)
        fields = msgspec.structs.asdict(order)
        sent = Submission(
            fields.pop("reason"), fields.pop("plan"), req.get_header("Idempotency-Key"), fields.pop("dry_run")
        )
        number = await self._acts.ask(actor, act, FORMS[act.kind](**fields), sent)
        resp.status = HTTPStatus.ACCEPTED
        resp.location = f"{API}/commands/{number}"
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(ActAnswer(number, act.kind, f"{API}/commands/{number}"))


class RejectedNumber(msgspec.Struct, frozen=True):
    """Path of a rejected request."""

    id: Number


class RejectedReadmit:
    """`/rejected/ID/readmit`: leads to the plan that readmits one request."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def on_post(self, req: Request, resp: Response, id: str) -> None:  # noqa: A002  # a part of the path
        """Go to the plan of the readmission of this one."""
        require_operator(req)
        rejected = of_path(RejectedNumber, {"id": id}, self._clock.now())
        resp.status, resp.location = HTTPStatus.SEE_OTHER, f"/acts/readmit?id={rejected.id}"


def add_routes(
    app: falcon.asgi.App[Request, Response], readers: Readers, renderer: render.Renderer, clock: Clock
) -> None:
    """Add the paths of all acts."""
    acts = Acts(readers, clock)
    app.add_route("/acts/{kind}", ActPage(acts, renderer))
    app.add_route(f"{API}/acts/{{kind}}", ActApi(acts))
    of_commands: tuple[tuple[str, CommandAct], ...] = (("stop", "stop"), ("resume", "continue"))
    for name, act in of_commands:
        command = CommandResource(readers, renderer, clock, act)
        app.add_route(f"/commands/{{id}}/{name}", command)
        app.add_route(f"{API}/commands/{{id}}/{name}", command, suffix="json")
    app.add_route("/rejected/{id}/readmit", RejectedReadmit(clock))
