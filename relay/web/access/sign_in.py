"""`/sign-in` and `/sign-out`: a password becomes a session."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import falcon
from falcon.asgi import Request, Response

from inbox.errors import NothingThere, PageError, TooManySignIns, WrongPassword
from inbox.logs.fields import fields
from inbox.logs.visible import visible
from relay.web import render
from relay.web.access import credentials
from relay.web.access import session as sessions
from relay.web.access.attempts import SignInLimits
from relay.web.access.credentials import PasswordHash
from relay.web.access.entries import Entry
from relay.web.access.guard import SIGN_IN, Guard, headers_of
from relay.web.access.requests import local_path, values_of
from relay.web.access.session import Session
from relay.web.forms import read_form
from relay.web.problems import set_status

_LONGEST_NAME = 64
_MOST_WAITING = 10
_BUSY_SECONDS = 5
_log = logging.getLogger("gunicorn.error")  # it goes where gunicorn's settings send it


class SignIn:
    """The form, and what it leads to."""

    def __init__(self, guard: Guard, renderer: render.Renderer) -> None:
        self._guard, self._renderer = guard, renderer
        self._limits = SignInLimits()
        # scrypt takes a tenth of a second and 32 MiB: one at a time, beside everything else
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="web-sign-in")
        self._waiting = 0

    async def on_get(self, req: Request, resp: Response) -> None:
        """Show the form; who is signed in goes on at once."""
        self._require_users()
        if req.context.actor is not None:
            raise falcon.HTTPSeeOther(local_path(_one(req, "next")))
        if values_of(headers_of(req), "sec-fetch-site") in (["cross-site"], ["same-site"]):
            # The cookie is not sent when a link of another site leads here. This page asks again, as one of our own.
            resp.set_header("Refresh", "0")
        self._show(resp, following=local_path(_one(req, "next")))

    on_head = on_get

    async def on_post(self, req: Request, resp: Response) -> None:
        """Compare the password, and begin a session."""
        self._require_users()
        fields = await read_form(req)
        name, following = fields.get("name", "").strip()[: _LONGEST_NAME + 1], local_path(fields.get("next", ""))
        try:
            entry = await self._person(name, fields.get("password", ""), self._guard.address_of(req))
        except PageError as error:
            set_status(resp, error)
            self._show(resp, name=name, following=following, problem=error)
            return
        self._begin(req, resp, entry)
        resp.status, resp.location = HTTPStatus.SEE_OTHER, following

    async def _person(self, name: str, password: str, address: str) -> Entry[PasswordHash]:
        """Return the person with this name and password.

        Raises:
            TooManySignIns: by this name or address.
            WrongPassword: of a known name or an unknown one, which takes the same time.
        """
        now = self._guard.monotonic()
        wait = self._limits.begin(name, address, now)
        if wait or self._waiting >= _MOST_WAITING:
            _log.warning(
                "too many attempts to sign in, the last as %s from %s",
                visible(name),
                visible(address),
                extra=fields("sign_in_held", subject=name),
            )
            seconds = math.ceil(wait) or _BUSY_SECONDS
            raise TooManySignIns(f"wait {seconds} s, and try again", retry_after_seconds=seconds)
        self._waiting += 1
        try:
            entry, is_right = await self._compare(name, password)
        finally:
            self._waiting -= 1
        if entry is None or not is_right:
            _log.warning(
                "failed sign-in as %s from %s",
                visible(name),
                visible(address),
                extra=fields("sign_in_failed", subject=name),
            )
            raise WrongPassword("try again; after many attempts there is a pause")
        self._limits.succeeded(name, address, self._guard.monotonic())
        _log.info(
            "%s has signed in from %s as %s",
            visible(name),
            visible(address),
            entry.role,
            extra=fields("signed_in", subject=name),
        )
        return entry

    async def _compare(self, name: str, password: str) -> tuple[Entry[PasswordHash] | None, bool]:
        """Return the person with this name, and whether the password is right. A name of nobody takes the same work."""
        people = await self._guard.accounts.people(fresh=True)
        entry = people.get(name)
        known = entry or next(iter(people.values()), None)
        cost = credentials.DEFAULT_COST if known is None else known.hash.cost
        hashed = credentials.decoy(cost) if entry is None else entry.hash
        return entry, await asyncio.get_running_loop().run_in_executor(self._hashing, hashed.matches, password)

    def _begin(self, req: Request, resp: Response, entry: Entry[PasswordHash]) -> None:
        lasting = int(self._guard.web.session)
        until = int(self._guard.clock.now().timestamp()) + lasting
        session = Session(entry.name, entry.role, until, secrets.token_urlsafe(16))
        resp.set_cookie(
            self._guard.cookie_of(req),
            sessions.write(session, entry.line),
            max_age=lasting,
            path="/",
            secure=self._guard.is_https(req),
            http_only=True,
            same_site="Strict",
        )

    def _show(self, resp: Response, *, following: str, name: str = "", problem: PageError | None = None) -> None:
        resp.content_type = render.TYPE
        resp.text = self._renderer.render(
            "sign-in.html",
            now=self._guard.clock.now(),
            title="Sign in",
            here=SIGN_IN,
            name=name,
            following=following,
            problem=problem,
            actor=None,
        )

    def _require_users(self) -> None:
        if self._guard.web.users is None:
            raise NothingThere("nobody has a password here; [web] users would name people who have one")


class SignOut:
    """Ends a session, in the browser and here."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def on_post(self, req: Request, resp: Response) -> None:
        """End it."""
        session = await self._guard.session_of(req)
        if session is not None:
            self._guard.ended.end(session, self._guard.clock.now().timestamp())
            _log.info("%s has signed out", visible(session.name), extra=fields("signed_out", subject=session.name))
        resp.unset_cookie(self._guard.cookie_of(req), path="/", same_site="Strict")
        resp.set_header("Clear-Site-Data", '"cache"')  # no-store alone: Chromium keeps pages for its button to go back
        resp.status, resp.location = HTTPStatus.SEE_OTHER, SIGN_IN


def _one(req: Request, name: str) -> str:
    value = req.params.get(name, "")
    return value if isinstance(value, str) else ""
