"""Acts over HTTP: a plan with a form, and its confirmation, which inserts one row of `relay_command` with a name and a reason.

Every operation of `relay.operations.table` has the same two paths: `/acts/KIND` and `/api/v1/acts/KIND`.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, cast

import falcon
import falcon.asgi
import msgspec
from falcon.asgi import Request, Response
from msgspec import Meta

from inbox.clock import Clock
from inbox.db.dialect import is_storable
from inbox.errors import BadFilter, NotAllowed, NothingThere, NotNow, PageError, PlanChanged, UnusableCommand
from inbox.events.states import MOST_REASON, SAYS_WHY_PATTERN
from inbox.events.timestamps import parse_time, rfc3339
from relay.accounts import Actor
from relay.operations.asks import BOUNDS, Name
from relay.operations.table import OPERATIONS, Operation
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.commands import CommandAct
from relay.store.operator.plan import reason_mistake
from relay.web import render
from relay.web.plans import ActPlan, Agreed, make_plan
from relay.web.problems import API, set_status
from relay.web.query import convert, encode, parameters, parse, read_body, read_form
from relay.web.reading import Readers

# --- what is sent

Reason = Annotated[
    str,
    Meta(max_length=MOST_REASON, extra_json_schema={"pattern": SAYS_WHY_PATTERN, "description": "Reason for it."}),
]
"""A reason that `checked_reason` takes."""
NONE_CHOSEN = "none"
"""The first value of `deliveries` in a form with a checkbox for each, so that one without a choice is not about everything."""
TIMES, LISTS = ("since", "until"), ("seqs", "deliveries", "kinds")


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of an act beside those of its selection."""

    reason: Reason
    plan: Annotated[str | None, Meta(description="The member `plan` of the plan that was shown.")] = None
    dry_run: Annotated[bool, Meta(description="Only say what it would do.")] = False
    again: Annotated[Name | None, Meta(description="The entity's id once more, so that nobody erases by mistake.")] = (
        None
    )


class ActAnswer(msgspec.Struct, frozen=True):
    """The command that was asked for, stopped or continued. A relay carries it out; its address tells how far it has come."""

    id: int
    kind: str
    href: str
    """Path of the command in the API."""


def fields_of(operation: Operation) -> tuple[str, ...]:
    """Return the names of the fields by which a person says what an operation is about."""
    return tuple(name for name in operation.keys if name not in BOUNDS)


def read_asked(operation: Operation, given: Mapping[str, Any], clock: Clock, *, of_json: bool = False) -> Any:  # noqa: ANN401  # `asks`
    """Read these fields, from a URL, a form or JSON; a time may be given as people say it. In a text, a list has commas.

    Raises:
        BadFilter: one is unknown or wrong.
    """
    now, filled = clock.now(), dict(given)
    for name in TIMES:
        if isinstance(filled.get(name), str) and filled[name]:
            try:
                filled[name] = rfc3339(parse_time(filled[name], now))
            except ValueError as error:
                raise BadFilter(f"{name} {filled[name]!r}: {error}", field=name) from None
    if of_json:
        return convert(operation.asks, filled, now, strict=True, known=fields_of(operation))
    filled |= {name: filled[name].split(",") for name in LISTS if filled.get(name)}
    return parse(operation.asks, filled, now, known=fields_of(operation))


async def read_json(req: Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadFilter: it is none.
        HTTPError: as `read_body`.
    """
    try:
        return msgspec.json.decode(await read_body(req), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFilter(f"the body is no JSON object: {error}") from None


def checked_reason(reason: str, asked: msgspec.Struct | None = None) -> str:
    """Return a reason without space around it.

    Raises:
        BadFilter: it says nothing, is too long, names the entity to erase, or has a character that no database stores.
    """
    stripped = reason.strip()
    if mistake := reason_mistake(asked, stripped):
        raise BadFilter(mistake, field="reason")
    if not is_storable(stripped):
        raise BadFilter("the reason has a character that no database stores", field="reason")
    return stripped


def _given(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a URL, where each checkbox of a delivery that was chosen gives one of `deliveries`.

    Raises:
        BadFilter: one is given twice, none is chosen, or a route has a name that no list can hold.
    """
    given, chosen = dict(params), params.get("deliveries")
    if chosen == NONE_CHOSEN:
        raise BadFilter("choose at least one delivery", field="deliveries")
    if isinstance(chosen, list):
        if any("," in each for each in chosen):  # it would name other deliveries
            raise BadFilter(
                "a route's name has a comma: choose its deliveries by `seqs` and `route`", field="deliveries"
            )
        given["deliveries"] = ",".join(each for each in chosen if each != NONE_CHOSEN)
    return parameters(given, {})


def _asked_by(req: Request, kind: str) -> tuple[Actor, Operation]:
    """Return who asks, and for which operation.

    Raises:
        NotAllowed: a viewer.
        NothingThere: there is no such act.
    """
    actor: Actor = req.context.actor
    if not actor.may_act:
        raise NotAllowed("only operators act; a viewer looks")
    if kind not in OPERATIONS:
        raise NothingThere(f"there is no act {kind!r}; there are {', '.join(OPERATIONS)}")
    return actor, OPERATIONS[kind]


def _check(operation: Operation, asked: Any, planned: ActPlan, sent: Submission) -> None:  # noqa: ANN401  # `asks`
    if sent.dry_run and not operation.has_dry_run:
        raise BadFilter(f"{operation.kind} has no dry run", field="dry_run")
    if planned.needs_everything and not asked.everything:
        raise BadFilter("no condition narrows this: confirm that everything is meant", field="everything")
    if operation.kind == "erase" and sent.again != asked.entity_id and not sent.dry_run:
        raise BadFilter("type the entity's id again: nothing brings an erased entity back", field="again")
    if planned.obstacle is not None:
        raise (NotNow if sent.plan is None else PlanChanged)("; ".join((planned.obstacle, *planned.instead)))


class ActResource:
    """`/acts/KIND` and `/api/v1/acts/KIND`: the plan, and its confirmation."""

    def __init__(self, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._readers, self._renderer, self._clock = readers, renderer, clock

    async def on_get(self, req: Request, resp: Response, kind: str) -> None:
        """Show the plan of a selection. One that makes no sense is shown with what is wrong."""
        actor, operation = _asked_by(req, kind)
        given = _given(req.params)
        given.pop("live", None)
        await self._show(resp, actor, operation, given)

    async def on_post(self, req: Request, resp: Response, kind: str) -> None:
        """Insert the command and show it; otherwise show the plan with what is in the way."""
        actor, operation = _asked_by(req, kind)
        given = await read_form(req)
        again = given.pop("again", None)
        sent = Submission(reason=given.pop("reason", ""), plan=given.pop("plan", "-"), again=again)
        try:
            number = await self._ask(actor, operation, read_asked(operation, given, self._clock), sent)
        except NothingThere:
            raise
        except PageError as error:
            await self._show(resp, actor, operation, given, problem=error, sent=sent)
            return
        resp.status, resp.location = HTTPStatus.SEE_OTHER, f"/commands/{number}"

    async def on_get_json(self, req: Request, resp: Response, kind: str) -> None:
        """Answer with the plan of the selection that the parameters give."""
        actor, operation = _asked_by(req, kind)
        asked = read_asked(operation, _given(req.params), self._clock)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(await self._plan(actor, operation, asked))

    async def on_post_json(self, req: Request, resp: Response, kind: str) -> None:
        """Insert the command, and answer 202 with its id."""
        actor, operation = _asked_by(req, kind)
        given = await read_json(req)
        more = {name: given.pop(name) for name in Submission.__struct_fields__ if name in given}
        sent = convert(Submission, {"reason": "", **more}, self._clock.now(), strict=True)
        number = await self._ask(actor, operation, read_asked(operation, given, self._clock, of_json=True), sent)
        resp.status, resp.location = HTTPStatus.ACCEPTED, f"{API}/commands/{number}"
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(ActAnswer(number, kind, resp.location))

    async def _plan(self, actor: Actor, operation: Operation, asked: Any, agreed: Agreed | None = None) -> ActPlan:  # noqa: ANN401  # `asks`
        """Make the plan of now; one that was `agreed` to is made as of then."""
        return await self._readers.read(
            actor, lambda reading: make_plan(reading, operation, asked, agreed), kind="acts"
        )

    async def _ask(self, actor: Actor, operation: Operation, asked: Any, sent: Submission) -> int:  # noqa: ANN401  # `asks`
        """Insert the command as it was agreed to, and return its id. Sent twice, the second one has nothing left to do.

        Raises:
            BadFilter: the reason or another field is missing or wrong.
            NotNow: the command that it is about is in another state.
            PlanChanged: the plan is no longer the one that was shown, or there is nothing to do.
        """
        said = {"who": actor.name, "why": checked_reason(sent.reason, asked)}
        agreed = Agreed.parse(sent.plan)
        planned = await self._plan(actor, operation, asked, agreed)
        _check(operation, asked, planned, sent)
        is_agreed = agreed is not None and agreed.allows(Agreed.parse(planned.plan))
        if sent.plan is not None and not is_agreed and not operation.is_of_a_command:
            raise PlanChanged(
                "it is no longer the plan that was shown; nothing was done. Look at it again, then confirm it"
            )

        def insert(database: Database) -> int:
            if operation.is_of_a_command:
                try:
                    commands.turn(database, cast("CommandAct", operation.kind), asked.command, **said)
                except UnusableCommand as error:
                    raise NotNow(str(error)) from None
                return int(asked.command)
            count = planned.count if planned.is_whole and not sent.dry_run else None
            return commands.ask(
                database, operation.kind, planned.selection, **said, dry_run=sent.dry_run, planned=count
            )

        return await self._readers.write(insert)

    async def _show(
        self,
        resp: Response,
        actor: Actor,
        operation: Operation,
        given: dict[str, str],
        *,
        problem: PageError | None = None,
        sent: Submission | None = None,
    ) -> None:
        planned, asked, hidden = None, None, dict[str, str]()
        # A plan that has changed is made anew, so that what is new is shown, too.
        agreed = None if sent is None or isinstance(problem, PlanChanged) else Agreed.parse(sent.plan)
        try:
            asked = read_asked(operation, given, self._clock)
            planned = await self._plan(actor, operation, asked, agreed)
            hidden = _hidden(given, asked)
        except PageError as error:
            problem = problem or error
        if problem is not None:
            set_status(resp, problem)
        self._renderer.show(
            resp,
            "act.html",
            title=operation.title,
            here=f"/acts/{operation.kind}",
            act=operation,
            actor=actor,
            problem=problem,
            page=planned,
            given=given,
            hidden=hidden,
            reason="" if sent is None else sent.reason,
            again=sent if planned is None and asked is not None else None,
        )


def _hidden(given: Mapping[str, str], asked: Any) -> dict[str, str]:  # noqa: ANN401  # the operation's `asks`
    """Return the fields that the form sends back: the selection with absolute times, so that it means the same then."""
    shown = {name: value for name, value in given.items() if name != "everything" and value}
    return shown | {name: rfc3339(getattr(asked, name)) for name in TIMES if name in shown}
