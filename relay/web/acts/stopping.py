"""`/commands/ID/stop` and `/commands/ID/resume`: stops a command where it is, or continues it, at once."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.errors import NoSuchCommand, NothingThere, NotNow, PageError, UnusableCommand
from relay.accounts import Actor
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.commands import CommandAct
from relay.web import render
from relay.web.acts.forms import Reason, checked_reason, require_storable
from relay.web.acts.requests import read_json, require_operator
from relay.web.problems import API, set_status
from relay.web.query import convert, of_path, read_form
from relay.web.reading import Readers
from relay.web.screens.commands import COMMAND, CommandQuery


class StopOrder(msgspec.Struct, frozen=True):
    """Stops a command, or continues it."""

    reason: Reason
    """Reason for it, which is kept as a command of its own."""


class CommandResource:
    """Stops a command or continues it, with a reason and the name of who does so."""

    def __init__(self, readers: Readers, renderer: render.Renderer, clock: Clock, act: CommandAct) -> None:
        self._readers, self._renderer, self._clock, self._act = readers, renderer, clock, act

    async def on_post(self, req: Request, resp: Response, id: str) -> None:  # noqa: A002  # a part of the path
        """Do it, and show the command; otherwise show it with what is in the way, and keep the reason."""
        actor, query = require_operator(req), self._query(id)
        given = await read_form(req)
        try:
            await self._carry_out(actor, query.id, given.get("reason", ""))
        except NothingThere:
            raise
        except PageError as error:
            await self._show(resp, actor, query, error, given.get("reason", ""))
            return
        resp.status, resp.location = HTTPStatus.SEE_OTHER, f"/commands/{query.id}"

    async def on_post_json(self, req: Request, resp: Response, id: str) -> None:  # noqa: A002  # a part of the path
        """Do it, and answer 202 with the place of the command."""
        actor, query = require_operator(req), self._query(id)
        order = convert(StopOrder, await read_json(req), self._clock.now(), strict=True)
        await self._carry_out(actor, query.id, order.reason)
        resp.status, resp.location = HTTPStatus.ACCEPTED, f"{API}/commands/{query.id}"

    async def _carry_out(self, actor: Actor, number: int, given: str) -> None:
        """Do it.

        Raises:
            BadFilter: the reason says nothing.
            NothingThere: there is no such command.
            NotNow: it has ended, or is not one that was stopped.
        """
        reason = checked_reason(given)
        require_storable({"reason": reason, "act": self._act})

        def make(database: Database) -> None:
            commands.turn(database, self._act, number, who=actor.name, why=reason)

        try:
            await self._readers.write(make)
        except NoSuchCommand as error:
            raise NothingThere(str(error)) from None
        except UnusableCommand as error:
            raise NotNow(str(error)) from None

    async def _show(self, resp: Response, actor: Actor, query: CommandQuery, problem: PageError, reason: str) -> None:
        page = None
        try:
            page = await self._readers.read(actor, lambda reading: COMMAND.read(reading, query), kind="acts")
        except NothingThere:
            raise
        except PageError as error:
            problem = error
        set_status(resp, problem)
        resp.content_type = render.TYPE
        resp.text = self._renderer.render_screen(
            COMMAND,
            now=self._clock.now(),
            query=query,
            page=page,
            problem=problem,
            config=self._readers.config,
            actor=actor,
            reason=reason,
            sent=self._act,
        )

    def _query(self, number: str) -> CommandQuery:
        return of_path(CommandQuery, {"id": number}, self._clock.now())
