"""The page as an ASGI application: routes of every screen, its JSON and its place in the API, and the form of every problem."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import unquote

import falcon
import falcon.asgi
import msgspec
from falcon.asgi import Request, Response
from falcon.routing import CompiledRouter

from inbox.clock import Clock
from inbox.errors import BadFilter, NothingThere, PageError
from relay.web import doctor_run, render
from relay.web.access.accounts import Actor
from relay.web.access.guard import SIGN_IN, SIGN_OUT, Guard, SignIn, SignOut
from relay.web.acts.resource import add_routes as add_acts
from relay.web.api import ApiDocument
from relay.web.difference import ENTITY_DIFFERENCE, DifferenceResource
from relay.web.doctor_run import DoctorRun
from relay.web.encoding import encode
from relay.web.live import LIVE_FIELD, Hub, LiveResource, ShownPage, inside_of_main, live_url
from relay.web.problems import API, ProblemAnswers, set_status
from relay.web.query import of_path, parameters, parse, url
from relay.web.reading import Readers, Spent
from relay.web.reveal import RevealResource
from relay.web.screen import ListPage, Reading, Screen
from relay.web.screens import SCREENS
from relay.web.static_files import PublicFiles

App = falcon.asgi.App[Request, Response]

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Shown(msgspec.Struct, frozen=True):
    """A screen as HTML."""

    html: str
    version: str
    """Changes with the data on it, and not with the time that has passed."""
    problem: PageError | None = None


class ScreenResource:
    """One screen, as HTML or JSON."""

    def __init__(self, screen: Screen, readers: Readers, renderer: render.Renderer, clock: Clock) -> None:
        self._screen, self._readers, self._renderer, self._clock = screen, readers, renderer, clock

    async def on_get(self, req: Request, resp: Response, **path: Any) -> None:  # noqa: ANN401  # parts of the path
        """Show it as HTML."""
        shown = await self.show(req.context.actor, path, req.params)
        if shown.problem is not None:
            set_status(resp, shown.problem)
        resp.content_type = render.TYPE
        resp.text = shown.html

    async def show(
        self, actor: Actor, path: Mapping[str, object], given: Mapping[str, object], spent: Spent | None = None
    ) -> Shown:
        """Read and render it. A filter that makes no sense, or takes too long, stays in its form below the problem.

        Args:
            actor: who asks.
            path: the parts of the path.
            given: the parameters of the URL; `live=0` makes a page that does not refresh itself.
            spent: counts the statements.

        Raises:
            NothingThere: there is nothing to show.
        """
        now = self._clock.now()
        query = of_path(self._screen.query, path, now)
        page, problem = None, None
        try:
            query = parse(self._screen.query, parameters(_asked(given), path), now)
            page = await self._readers.read(actor, self._reading_of(query), spent, kind=self._screen.name)
        except NothingThere:
            raise
        except PageError as error:
            problem = error
        version = _version(page, problem)
        is_live = self._screen.is_live and given.get(LIVE_FIELD) != "0" and not isinstance(problem, BadFilter)
        html = self._renderer.render_screen(
            self._screen,
            now=now,
            query=query,
            page=page,
            problem=problem,
            config=self._readers.config,
            actor=actor,
            live=live_url(url(self._screen.path, query), version) if is_live else None,
        )
        return Shown(html, version, problem)

    async def on_get_json(self, req: Request, resp: Response, **path: Any) -> None:  # noqa: ANN401  # parts of the path
        """Answer with the same as JSON."""
        now = self._clock.now()
        of_path(self._screen.query, path, now)
        query = parse(self._screen.query, parameters(_asked(req.params), path), now)
        page = await self._readers.read(req.context.actor, self._reading_of(query), kind=self._screen.name)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = encode(page)
        if isinstance(page, ListPage) and page.before is not None:
            resp.append_link(url(req.uri_template or req.path, query, before=page.before), "next")

    on_head, on_head_json = on_get, on_get_json

    def _reading_of(self, query: msgspec.Struct) -> Callable[[Reading], msgspec.Struct]:
        return lambda reading: self._screen.read(reading, query)


def _version(page: msgspec.Struct | None, problem: PageError | None) -> str:
    said = encode(page) if problem is None else f"{problem.title} {problem.detail}".encode()
    return hashlib.sha256(said).hexdigest()[:16]


def _asked(given: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters that a screen reads: the page's address means the same as JSON."""
    return {name: value for name, value in given.items() if name != LIVE_FIELD}


class _Route:
    """A screen, in a form that Falcon's router takes outside of an application."""

    def __init__(self, screen: ScreenResource) -> None:
        self.screen = screen

    def on_get(self) -> None:
        """Nobody calls it."""


class Screens:
    """The screens by their URLs, for the hub."""

    def __init__(self) -> None:
        self._router = CompiledRouter()

    def add(self, path: str, resource: ScreenResource) -> None:
        """Add a screen."""
        self._router.add_route(path, _Route(resource))

    async def read(self, actor: Actor, address: str) -> ShownPage:
        """Read the screen at a URL.

        Raises:
            NothingThere: there is nothing at this URL.
        """
        path, _, given = address.partition("?")
        found = self._router.find(unquote(path))
        if found is None:
            raise NothingThere("no page has this address")
        route, _methods, parts, _template = found
        spent = Spent()
        shown = await cast("_Route", route).screen.show(
            actor, parts, falcon.uri.parse_query_string(given, keep_blank=False, csv=False), spent
        )
        return ShownPage(inside_of_main(shown.html), shown.version, spent.statements)


class SecurityHeaders:
    """Falcon middleware: headers that keep other sites and injected text out."""

    async def process_response(
        self, _req: Request, resp: Response, _resource: object, _succeeded: bool
    ) -> None:  # Falcon's
        """Set them on every answer."""
        for name, value in SECURITY_HEADERS.items():
            if resp.get_header(name) is None:
                resp.set_header(name, value)


def create_app(readers: Readers, clock: Clock, access: Any) -> App:  # noqa: ANN401  # Falcon middleware
    """Make the application. `access` is middleware that sets `req.context.actor`, or raises PageError."""
    app: App = falcon.asgi.App(middleware=[SecurityHeaders(), PublicFiles(), access])
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.keep_blank_qs_values = False
    app.req_options.auto_parse_qs_csv = False
    renderer = render.Renderer(tuple((screen.path, screen.title) for screen in SCREENS if screen.in_menu))
    screens = Screens()
    for screen in SCREENS:
        resource = ScreenResource(screen, readers, renderer, clock)
        if screen.is_live:
            screens.add(screen.path, resource)
        app.add_route(screen.path, resource)
        app.add_route(f"{screen.path.rstrip('/') or '/overview'}.json", resource, suffix="json")
        app.add_route(f"{API}{screen.path.rstrip('/') or '/overview'}", resource, suffix="json")

    add_acts(app, readers, renderer, clock)
    if isinstance(access, Guard):
        app.add_route(SIGN_IN, SignIn(access, renderer))
        app.add_route(SIGN_OUT, SignOut(access))
    app.add_route(f"{API}/openapi.json", ApiDocument())
    app.add_route("/live", LiveResource(Hub(screens.read, clock), access))
    run = DoctorRun(readers.doctor, clock)
    app.add_route(doctor_run.PATH, run)
    app.add_route(f"{API}{doctor_run.PATH}", run, suffix="json")
    reveal = RevealResource(readers, renderer, clock)
    app.add_route("/events/{seq}/reveal", reveal)
    app.add_route(f"{API}/events/{{seq}}/reveal", reveal, suffix="json")
    difference = DifferenceResource(readers, renderer, clock)
    app.add_route(ENTITY_DIFFERENCE, difference)
    app.add_route(f"{ENTITY_DIFFERENCE}.json", difference, suffix="json")
    app.add_route(f"{API}{ENTITY_DIFFERENCE}", difference, suffix="json")
    ProblemAnswers(renderer, clock).add_to(app)
    return app
