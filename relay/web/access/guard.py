"""Falcon middleware in front of every screen and act: it says who asks, and turns away who may not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.config.types import Network
from inbox.config.web import Web
from inbox.errors import NotAllowed, SignInNeeded
from relay.web.access import session as sessions
from relay.web.access.accounts import Accounts
from relay.web.access.actor import Actor
from relay.web.access.requests import (
    SAFE_METHODS,
    Headers,
    address_of,
    bearer_token,
    is_same_origin,
    named_by_proxy,
    values_of,
)
from relay.web.access.session import EndedSessions, Session

SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
_PUBLIC = re.compile(r"/static/.*|/health/live")
_OF_VIEWERS = re.compile(r"/sign-out|(/api/v1)?/events/[0-9]+/reveal")
"""Paths of unsafe methods that a viewer may use, too."""


class Guard:
    """Admits people and programs by `[web]`. It belongs to one event loop."""

    def __init__(
        self,
        web: Web,
        clock: Clock,
        *,
        forwarding: Sequence[Network] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare it; it reads no file yet: see `check_accounts`. Of `forwarding` proxies `X-Forwarded-For` is believed."""
        self.web, self.clock, self.monotonic = web, clock, monotonic
        self._forwarding = forwarding
        self.accounts = Accounts(web, monotonic)
        self.ended = EndedSessions()

    async def process_request(self, req: Request, _resp: Response) -> None:
        """Set `req.context.actor`; None only at the sign-in.

        Raises:
            SignInNeeded: nobody is signed in, the session has ended, or the token is unknown.
            NotAllowed: the role does not allow it, or another site sent it.
            AccessBroken: the file of those who may use the page can't be read.
        """
        req.context.actor = None
        is_safe = req.method in SAFE_METHODS
        if is_safe and _PUBLIC.fullmatch(req.path):
            return
        headers = headers_of(req)
        token = bearer_token(headers)
        if not is_safe and token is None and not is_same_origin(headers, self._own_origin(req), self.web.origin):
            raise NotAllowed(
                "the request comes from another site, or the page has another address than the browser knows:"
                " then give [web] origin"
            )
        actor = await (self._of_person(req, headers) if token is None else self._of_token(token))
        req.context.actor = actor
        if req.path in {SIGN_IN, SIGN_OUT}:
            return
        if actor is None:
            raise self._sign_in(req, is_safe=is_safe)
        if not is_safe and not actor.may_act and not _OF_VIEWERS.fullmatch(req.path):
            raise NotAllowed(f"{actor.name} is a viewer, and only an operator may do this")

    async def session_of(self, req: Request, *, fresh: bool = False) -> Session | None:
        """Return the session of the cookie, if it is valid now; `fresh` reads the users file in any case."""
        cookies = req.get_cookie_values(self.cookie_of(req)) or []
        if self.web.users is None or len(cookies) != 1:
            return None
        session = sessions.read(cookies[0], await self.accounts.people(fresh=fresh), self.clock.now().timestamp())
        return None if session is None or session in self.ended else session

    def address_of(self, req: Request) -> str:
        """Return the address that a request comes from, for limits and the log. It lets nobody in."""
        return address_of(headers_of(req), peer_of(req), self._forwarding)

    def cookie_of(self, req: Request) -> str:
        """Return the name of the session's cookie."""
        return sessions.cookie_name(is_https=self.is_https(req))

    def is_https(self, req: Request) -> bool:
        """Return whether the browser sees https, though a proxy may end it."""
        origin = self.web.origin
        return req.scheme == "https" if origin is None else origin.lower().startswith("https:")

    async def _of_token(self, token: str) -> Actor:
        actor = await self.accounts.of_token(token)
        if actor is None:
            raise SignInNeeded("the bearer token is unknown; make one with `relay web token`")
        return actor

    async def _of_person(self, req: Request, headers: Headers) -> Actor | None:
        session = await self.session_of(req)
        if session is not None:
            return Actor(session.name, session.role)
        proxy = self.web.proxy
        return None if proxy is None else named_by_proxy(headers, peer_of(req), proxy)

    def _sign_in(self, req: Request, *, is_safe: bool) -> SignInNeeded:
        if self.web.users is None:
            person = "come by the proxy that signs people in, or " if self.web.proxy is not None else ""
            return SignInNeeded(f"{person}send a bearer token")
        if not is_safe:
            return SignInNeeded("the session has ended; sign in in another tab, and send this again")
        return SignInNeeded("sign in, or send a bearer token", form=f"{SIGN_IN}?{urlencode({'next': target_of(req)})}")

    def _own_origin(self, req: Request) -> str:
        hosts = values_of(headers_of(req), "host")
        return f"{req.scheme}://{hosts[0]}" if len(hosts) == 1 else ""


def headers_of(req: Request) -> Headers:
    """Return the headers as they came; Falcon joins those that are given twice."""
    headers: list[tuple[bytes, bytes]] = req.scope["headers"]
    return headers


def peer_of(req: Request) -> str | None:
    """Return the address of the connection's other end; None for a Unix socket.

    It is that only where uvicorn's `proxy_headers` is off. Else who sends `X-Forwarded-For` claims to be any proxy.
    """
    client = req.scope.get("client")
    return str(client[0]) if client else None


def target_of(req: Request) -> str:
    """Return the path and query as they came, percent-encoded."""
    raw = req.scope.get("raw_path") or req.path.encode()
    path: str = raw.decode("ascii", "replace").partition("?")[0]
    return f"{path}?{req.query_string}" if req.query_string else path
