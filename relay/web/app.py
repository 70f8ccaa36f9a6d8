"""The page as an ASGI application: the routes of every screen, of its JSON, and of the API."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import falcon
import falcon.asgi
from falcon.asgi import Request, Response
from falcon.media import JSONHandler

from inbox.clock import Clock, SystemClock
from inbox.config.model import Config
from inbox.config.values import Network
from inbox.errors import BadFilter, NothingThere, PageError
from inbox.http.limits import CAPACITY, Capacity
from relay.accounts import check_accounts
from relay.web import render
from relay.web.acts import ActResource
from relay.web.guard import SIGN_IN, SIGN_OUT, Guard, Sessions, SignIn
from relay.web.openapi import ApiDocument
from relay.web.problems import API, PROBLEM_TYPE, ProblemAnswers, set_status, wants_json
from relay.web.query import LIVE_FIELD, convert, encode, given_in, url
from relay.web.reading import ListPage, NotYourTurn, Readers, Screen
from relay.web.reveal import EditResource, RevealResource
from relay.web.screens import SCREENS

App = falcon.asgi.App[Request, Response]

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


_IMMUTABLE = frozenset(render.STATIC.values())
REFRESH_HEADER = "X-Refresh"
"""Header of a request that refreshes an open page."""


CONNECTIONS = 250
"""Maximum number of open connections. A browser has one for the visible page, and a few while it loads a page.

A further connection replaces the one that has been idle longest; if all are busy, it gets 503.
"""


class ScreenResource:
    """One screen, as HTML or JSON."""

    def __init__(self, screen: Screen, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._screen, self._readers, self._renderer, self._clock = screen, readers, renderer, clock

    async def on_get(self, req: Request, resp: Response, **path: int) -> None:
        """Respond with the screen as HTML or JSON. A refresh gets 304 if nothing changed, and 204 if it has to wait.

        An invalid or slow filter stays in its form, below the problem.
        """
        given, is_refresh = given_in(req, path), req.get_header(REFRESH_HEADER) is not None
        query, page, problem, version = None, None, None, None
        try:
            query = convert(self._screen.query, given, self._clock.now())
            read = self._readers.refresh if is_refresh else self._readers.read
            page = await read(req.context.actor, lambda reading: self._screen.read(reading, query))
        except NotYourTurn:
            resp.status = falcon.HTTP_204
            return
        except NothingThere:
            raise
        except PageError as error:
            if wants_json(req):
                raise
            problem = error
            set_status(resp, error)
        else:
            if wants_json(req):
                resp.media = page
                if isinstance(page, ListPage) and page.before is not None:
                    resp.append_link(url(req.path, given, before=page.before), "next")
                return
            resp.etag = version = hashlib.sha256(encode(page)).hexdigest()[:16]
            if req.if_none_match and version in req.if_none_match:
                resp.status = falcon.HTTP_304
                return
        self._renderer.show_screen(
            resp,
            self._screen,
            given=given,
            query=query,
            page=page,
            problem=problem,
            actor=req.context.actor,
            live=self._screen.is_live
            and req.params.get(LIVE_FIELD) != "0"
            and "body" not in given  # a search in payloads is too expensive to repeat
            and not isinstance(problem, BadFilter),
            version=version,
        )

    on_head = on_get


class SecurityHeaders:
    """Falcon middleware that sets headers to protect against other sites and injected text."""

    async def process_response(
        self, req: Request, resp: Response, _resource: object, _succeeded: bool
    ) -> None:  # Falcon's
        """Set the headers of a response; browsers may cache only static files."""
        kept = "public, max-age=31536000, immutable" if req.relative_uri in _IMMUTABLE else "no-cache"
        resp.set_headers({**SECURITY_HEADERS, "Cache-Control": kept if req.path.startswith("/static/") else "no-store"})


class SearchBox:
    """`/find`: redirects a search to the list that has its text."""

    async def on_get(self, req: Request, resp: Response) -> None:
        """Redirect a number to the event's deliveries, TYPE/ID to the entity's, and any other text to those of that sender's id."""
        given = (req.get_param("q") or "").strip()
        field = "seq" if given.isascii() and given.isdigit() else "entity" if "/" in given else "sender_id"
        resp.status, resp.location = falcon.HTTP_303, url("/deliveries", {field: given})


class Live:
    """`/health/live`: the process is alive."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Respond with 200."""
        resp.media = {"status": "live"}

    on_head = on_get


def create_app(readers: Readers, clock: Clock, access: Any) -> App:  # noqa: ANN401  # Falcon middleware
    """Make the application. `access` is middleware that sets `req.context.actor`, or raises PageError."""
    app: App = falcon.asgi.App(middleware=[SecurityHeaders(), access])
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.keep_blank_qs_values = False
    app.req_options.auto_parse_qs_csv = False
    renderer = render.Renderer(SCREENS, clock, readers.config)
    app.resp_options.media_handlers.update(dict.fromkeys((falcon.MEDIA_JSON, PROBLEM_TYPE), JSONHandler(dumps=encode)))
    for screen in SCREENS:
        resource = ScreenResource(screen, readers, renderer, clock)
        api = screen.path.rstrip("/") or "/overview"
        for path in (screen.path, f"{api}.json", f"{API}{api}"):
            app.add_route(_convert_path(path), resource)

    act = ActResource(readers, renderer, clock)
    app.add_route("/acts/{kind}", act)
    app.add_route(f"{API}/acts/{{kind}}", act)
    if isinstance(access, Guard) and access.web.users is not None:
        sign_in = SignIn(access, renderer)
        app.add_route(SIGN_IN, sign_in)
        app.add_route(SIGN_OUT, sign_in, suffix="out")
    app.add_route(f"{API}/openapi.json", ApiDocument())
    app.add_route("/find", SearchBox())
    app.add_route("/health/live", Live())
    app.add_static_route("/static", render.STATIC_FOLDER)
    reveal = RevealResource(readers, renderer, clock)
    app.add_route(_convert_path("/events/{seq}/reveal"), reveal)
    app.add_route(_convert_path(f"{API}/events/{{seq}}/reveal"), reveal)
    edit = EditResource(readers, renderer, clock)
    app.add_route(_convert_path("/events/{seq}/edit"), edit)
    app.add_route(_convert_path(f"{API}/events/{{seq}}/edit"), edit)
    ProblemAnswers(renderer).add_to(app)
    return app


def _convert_path(path: str) -> str:
    """Convert a path for Falcon, with fields that accept only numbers."""
    return path.replace("}", f":int(min=0, max={2**63 - 1})}}")


class _Lifespan:
    """Falcon middleware that sets the page's limits in the server, and closes the database connections at shutdown."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    async def process_startup(self, scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Set the limits in the server, which calls this before the first request."""
        scope.get("state", {})[CAPACITY] = Capacity(CONNECTIONS, CONNECTIONS, per_connection=10_000)

    async def process_shutdown(self, _scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Close the connections. The server calls this after the last request."""
        self._readers.close()


def make_page(config: Config, forwarding: Iterable[str] = (), sessions: Sessions | None = None) -> App:
    """Make the application. It opens no connections, so that a forked process can serve it.

    Args:
        config: the configuration.
        forwarding: addresses and networks of proxies, as gunicorn's `forwarded_allow_ips`.
        sessions: sessions that outlive this configuration.

    Raises:
        ConfigError: no access is configured, or an accounts file can't be read. The text has a line for each mistake.
    """
    clock = SystemClock()
    check_accounts(config.web)
    # `*` is ignored: with every address trusted, an attacker could choose the address under which attempts are counted.
    networks = [Network.parse(each) for each in forwarding if each != "*"]
    readers = Readers(config, clock)
    app = create_app(readers, clock, Guard(config.web, clock, sessions or Sessions(), forwarding=networks))
    app.add_middleware(_Lifespan(readers))
    return app
