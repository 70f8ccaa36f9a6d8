"""Acts over HTTP: a plan with a form, and its confirmation. Confirming inserts a row of `relay_command` with name and reason.

Every operation of `relay.operations.table` has the same two paths: `/acts/KIND` and `/api/v1/acts/KIND`.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, cast

import msgspec
from falcon.asgi import Request, Response
from msgspec import Meta

from inbox.clock import Clock
from inbox.errors import BadFilter, NotAllowed, NothingThere, NotNow, PageError, PlanChanged, UnusableCommand
from inbox.events.states import MOST_REASON, SAYS_WHY_PATTERN
from relay.accounts import Actor
from relay.operations.asks import BOUNDS, Name
from relay.operations.table import OPERATIONS, Operation, describe_missing_condition
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.commands import CommandAct
from relay.store.operator.plan import find_reason_mistake
from relay.web import render
from relay.web.plans import ActPlan, Agreed, make_plan
from relay.web.problems import API, set_status, wants_json
from relay.web.query import convert, given_in, read_form, read_json
from relay.web.reading import Readers

# --- submissions

Reason = Annotated[
    str,
    Meta(max_length=MOST_REASON, extra_json_schema={"pattern": SAYS_WHY_PATTERN, "description": "Reason for the act."}),
]
"""A reason that `check_reason` accepts."""
NONE_CHOSEN = "none"
"""First value of `deliveries` in a form with checkboxes, so that a form without any checked box does not select everything."""


Fields = Mapping[str, Any]
"""Submitted values by name."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of an act other than those of its selection."""

    reason: Reason = ""
    plan: Annotated[str | None, Meta(description="The member `plan` of the plan that was shown.")] = None
    again: Annotated[Name | None, Meta(description="The entity's id, repeated to prevent an accidental erasure.")] = (
        None
    )


class ActAnswer(msgspec.Struct, frozen=True):
    """The command that was created, stopped or continued. A relay executes it; `href` shows its progress."""

    id: int
    kind: str
    href: str
    """Path of the command in the API."""


def list_fields(operation: Operation) -> tuple[str, ...]:
    """Return the names of the fields of an operation's selection."""
    return tuple(name for name in operation.keys if name not in BOUNDS)


def check_reason(reason: str, asked: msgspec.Struct | None = None) -> str:
    """Return the reason without surrounding space.

    Raises:
        BadFilter: the reason is empty, too long, or names the entity to erase.
    """
    if mistake := find_reason_mistake(asked, reason.strip()):
        raise BadFilter(mistake, field="reason")
    return reason.strip()


def _chosen(req: Request) -> dict[str, Any]:
    """Return the parameters of a URL, with the deliveries of the checked boxes as `deliveries`.

    Raises:
        BadFilter: no box is checked.
    """
    given = given_in(req)
    if given.get("deliveries") == NONE_CHOSEN:
        raise BadFilter("choose at least one delivery", field="deliveries")
    if isinstance(given.get("deliveries"), list):
        given["deliveries"] = [each for each in given["deliveries"] if each != NONE_CHOSEN]
    return given


def _split_fields(given: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the fields into those of the selection and those of the act."""
    sent = {name: value for name, value in given.items() if name in Submission.__struct_fields__}
    return sent, {name: value for name, value in given.items() if name not in sent}


def _authorize(req: Request, kind: str) -> tuple[Actor, Operation]:
    """Return the actor of a request, and the operation.

    Raises:
        NotAllowed: the actor is a viewer.
        NothingThere: there is no such act.
    """
    actor: Actor = req.context.actor
    if not actor.may_act:
        raise NotAllowed("only operators may act; viewers are read-only")
    if kind not in OPERATIONS:
        raise NothingThere(f"there is no act {kind!r}; there are {', '.join(OPERATIONS)}")
    return actor, OPERATIONS[kind]


def _check(operation: Operation, asked: Any, planned: ActPlan, sent: Submission) -> None:  # noqa: ANN401  # `asks`
    if planned.needs_everything and not asked.everything:
        raise BadFilter(describe_missing_condition(operation), field="everything")
    if operation.kind == "erase" and sent.again != asked.entity_id:
        raise BadFilter("type the entity's id again: an erasure can't be undone", field="again")
    if planned.obstacle is not None:
        raise (NotNow if sent.plan in {None, planned.plan} else PlanChanged)(planned.says)


class ActResource:
    """`/acts/KIND` and `/api/v1/acts/KIND`: the plan and its confirmation."""

    def __init__(self, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._readers, self._renderer, self._clock = readers, renderer, clock

    async def on_get(self, req: Request, resp: Response, kind: str) -> None:
        """Respond with the plan of a selection, as a page or JSON. The page also shows an invalid selection."""
        actor, operation = _authorize(req, kind)
        if wants_json(req):
            resp.media = await self._plan(actor, operation, self._read(operation, _chosen(req)))
        else:
            await self._show(resp, actor, operation, _chosen(req), {})

    async def on_post(self, req: Request, resp: Response, kind: str) -> None:
        """Insert the command, and redirect to it or respond with 202 and its id. On an error, the page shows the plan again."""
        actor, operation = _authorize(req, kind)
        is_json = wants_json(req)
        sent, given = _split_fields(await (read_json if is_json else read_form)(req))
        if not is_json:
            sent["plan"] = sent.get("plan") or "-"  # a form without a plan confirms nothing
        try:
            number = await self._ask(actor, operation, given, sent, strict=is_json)
        except NothingThere:
            raise
        except PageError as error:
            if is_json:
                raise
            await self._show(resp, actor, operation, given, sent, problem=error)
            return
        resp.status, resp.location = HTTPStatus.SEE_OTHER, f"/commands/{number}"
        if is_json:
            resp.status, resp.location = HTTPStatus.ACCEPTED, f"{API}/commands/{number}"
            resp.media = ActAnswer(number, kind, resp.location)

    def _read(self, operation: Operation, given: Fields, *, strict: bool = False) -> Any:  # noqa: ANN401  # `asks`
        return convert(operation.asks, given, self._clock.now(), strict=strict, known=list_fields(operation))

    async def _plan(self, actor: Actor, operation: Operation, asked: Any, agreed: Agreed | None = None) -> ActPlan:  # noqa: ANN401  # `asks`
        """Make the current plan; with `agreed`, make it as of the time of the agreed plan."""
        return await self._readers.read(actor, lambda reading: make_plan(reading, operation, asked, agreed))

    async def _ask(self, actor: Actor, operation: Operation, given: Fields, fields: Fields, *, strict: bool) -> int:
        """Insert the confirmed command, and return its id. A second submission finds nothing left to do.

        Raises:
            BadFilter: the reason or another field is missing or wrong.
            NotNow: the command to stop or continue is in another state.
            PlanChanged: the plan differs from the one that was shown, or there is nothing to do.
        """
        sent = convert(Submission, fields, self._clock.now(), strict=strict)
        asked = self._read(operation, given, strict=strict)
        who, why = actor.name, check_reason(sent.reason, asked)
        agreed = Agreed.parse(sent.plan)
        planned = await self._plan(actor, operation, asked, agreed)
        _check(operation, asked, planned, sent)
        is_agreed = agreed is not None and agreed.allows(Agreed.parse(planned.plan))
        if sent.plan is not None and not is_agreed and not operation.is_of_a_command:
            raise PlanChanged(
                "the plan has changed since it was shown, and nothing was done. Review it, then confirm it again"
            )

        def insert(database: Database) -> int:
            if operation.is_of_a_command:
                try:
                    commands.turn(database, cast("CommandAct", operation.kind), asked.command, who=who, why=why)
                except UnusableCommand as error:
                    raise NotNow(str(error)) from None
                return int(asked.command)
            count = planned.count if planned.is_whole else None
            return commands.ask(database, operation.kind, planned.selection, who=who, why=why, planned=count)

        return await self._readers.write(insert)

    async def _show(
        self,
        resp: Response,
        actor: Actor,
        operation: Operation,
        given: Fields,
        sent: Fields,
        *,
        problem: PageError | None = None,
    ) -> None:
        planned, hidden = None, None
        # A changed plan is made anew, so that it shows new rows too.
        agreed = None if isinstance(problem, PlanChanged) else Agreed.parse(sent.get("plan"))
        try:
            asked = self._read(operation, given)
            hidden = _hidden(asked)
            planned = await self._plan(actor, operation, asked, agreed)
        except PageError as error:
            problem = problem or error
        if problem is not None:
            set_status(resp, problem)
        shown = {"act": operation, "page": planned, "given": given, "hidden": hidden, "sent": sent}
        here = f"/acts/{operation.kind}"
        self._renderer.show(resp, "act.html", title=operation.title, here=here, actor=actor, problem=problem, **shown)


def _hidden(asked: msgspec.Struct) -> dict[str, str]:
    """Return the hidden fields of the form: the selection, with absolute times so that its meaning stays the same."""
    given = {name: value for name, value in msgspec.to_builtins(asked).items() if name != "everything"}
    return {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else "true" if value is True else str(value)
        for name, value in given.items()
    }
