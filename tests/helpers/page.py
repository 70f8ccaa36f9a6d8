"""The operator's page in this process, with the tests' or the real access control, and its HTTP client."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import argon2
import msgspec
import pytest
import requests
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.config.model import Config, DatabaseSettings, Web, WebProxy
from inbox.config.values import DatabaseUrl, Network, Secret
from inbox.errors import SignInNeeded
from relay.accounts import Actor, hash_password, hash_token
from relay.demo.services import App, serve
from relay.web import plans, reading
from relay.web.app import create_app
from relay.web.guard import Guard, Sessions
from relay.web.reading import Readers
from relay.web.screens import lists
from tests.helpers.relaying import FakeClock, Monotonic

_rest = contextlib.ExitStack()
atexit.register(_rest.close)


class _Stage:
    """An ASGI application that delegates to another one."""

    def __init__(self) -> None:
        self.app: Any = None
        self.url = _rest.enter_context(serve(cast("App", self)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's
        await self.app(scope, receive, send)


_free: list[_Stage] = []


@contextlib.contextmanager
def stage_app(app: App) -> Iterator[str]:
    """Serve an application on a free server and yield its URL."""
    stage = _free.pop() if _free else _Stage()
    stage.app = app
    try:
        yield stage.url
    finally:
        _free.append(stage)


OPERATOR = Actor("olga", "operator")
VIEWER = Actor("veikko", "viewer")
_HEADER = "X-Test-Actor"


def lift_time_limits(patch: pytest.MonkeyPatch) -> None:
    """Allow searches, plans and statements of a page 60 s, for busy machines."""
    for module in (reading, plans, lists):
        patch.setattr(module, "LONGEST_SECONDS", 60.0)


class GivenActor:
    """Access control for tests: a request header names the actor; without it, one has to sign in."""

    async def process_request(self, req: Request, _resp: Response) -> None:
        given = req.get_header(_HEADER)
        if given is None and req.path.startswith("/static/"):
            return
        if given is None:
            raise SignInNeeded("no actor is named")
        role, name = given.split(" ")
        req.context.actor = Actor(unquote(name), role)  # type: ignore[arg-type]  # tests name valid roles


class Page:
    """Requests to the page, by an operator unless another actor or None is given."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False

    def get(self, path: str, actor: Actor | None = OPERATOR, **options: Any) -> requests.Response:  # noqa: ANN401
        """GET a path as a browser does, without following redirects."""
        return self._send("GET", path, actor, {"Accept": "text/html"}, options)

    def json(self, path: str, actor: Actor | None = OPERATOR) -> Any:  # noqa: ANN401  # any JSON
        """GET a path and return the JSON of its 200 response."""
        answer = self._send("GET", path, actor, {"Accept": "application/json"}, {})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(
        self,
        path: str,
        form: Mapping[str, object] = {},  # it is not changed
        actor: Actor | None = OPERATOR,
        **options: Any,  # noqa: ANN401
    ) -> requests.Response:
        """POST a form as a browser on this page does, without following redirects."""
        headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin", "Origin": self.url}
        return self._send("POST", path, actor, headers, {"data": dict(form), **options})

    def close(self) -> None:
        self._session.close()

    def _send(
        self, method: str, path: str, actor: Actor | None, headers: Mapping[str, str], options: dict[str, Any]
    ) -> requests.Response:
        who = {} if actor is None else {_HEADER: f"{actor.role} {quote(actor.name)}"}
        sent = {**headers, **who, **options.pop("headers", {})}
        options = {"timeout": 30, "allow_redirects": False, **options}
        return self._session.request(method, self.url + path, headers=sent, **options)


def on_database(config: Config, database_url: str) -> Config:
    """Return the configuration with another database."""
    return msgspec.structs.replace(config, database=DatabaseSettings(url=DatabaseUrl(database_url)))


@contextlib.contextmanager
def serving(config: Config, clock: Clock) -> Iterator[Page]:
    """Serve the page of a configuration."""
    readers = Readers(config, clock)
    app = create_app(readers, clock, GivenActor())
    with contextlib.closing(readers), stage_app(app) as url, contextlib.closing(Page(url)) as page:
        yield page


FAST = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Hasher with minimal cost."""
PASSWORD, OTHER_PASSWORD = "correct horse battery", "another long password"
TOKEN, VIEWER_TOKEN = "irw_of-an-operator", "irw_of-a-viewer"


def user(name: str, role: str = "operator", password: str = PASSWORD) -> str:
    """Return a line of the users file."""
    return f"{name}:{role}:{hash_password(password, FAST)}\n"


def token(name: str, value: str, role: str) -> str:
    """Return a line of the tokens file."""
    return f"{name}:{role}:{hash_token(value)}\n"


class Entrance:
    """The page with its real access control. Requests have a browser's headers and follow no redirects."""

    def __init__(self, url: str, users: Path, tokens: Path, clock: FakeClock, steady: Monotonic) -> None:
        self.url, self.users, self.tokens, self.clock, self.steady = url, users, tokens, clock, steady
        self.browser = requests.Session()
        self.browser.trust_env = False

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] = {},  # it is not changed
        **options: Any,  # noqa: ANN401
    ) -> requests.Response:
        return self.browser.request(
            method,
            self.url + path,
            headers={"Accept": "text/html", **headers},
            allow_redirects=False,
            timeout=30,
            **options,
        )

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.send("GET", path, _name_headers(headers))

    def post(self, path: str, form: Mapping[str, str] = {}, **headers: str) -> requests.Response:  # it is not changed
        """POST a form as the page itself does, unless `sec_fetch_site` differs."""
        sent = {"sec_fetch_site": "same-origin", **headers}
        return self.send(
            "POST", path, _name_headers({name: value for name, value in sent.items() if value}), data=dict(form)
        )

    def sign_in(self, name: str = "anna", password: str = PASSWORD, following: str = "/rejected") -> requests.Response:
        return self.post("/sign-in", {"name": name, "password": password, "next": following})

    def later(self, seconds: float) -> None:
        """Advance both clocks."""
        self.clock.advance(seconds)
        self.steady.seconds += seconds


def _name_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextlib.contextmanager
def entrance(
    config: Config,
    folder: Path,
    *,
    forwarding: Sequence[str] = (),
    sessions: Sessions | None = None,
    **changed: Any,  # noqa: ANN401  # keys of [web]
) -> Iterator[Entrance]:
    """Serve the page with the users anna (operator) and veikko (viewer), and a token of each role."""
    users, tokens = folder / "users", folder / "tokens"
    users.write_text(f"# people\n\n{user('anna')}{user('veikko', 'viewer', OTHER_PASSWORD)}")
    tokens.write_text(token("script", TOKEN, "operator") + token("graph", VIEWER_TOKEN, "viewer"))
    web = msgspec.structs.replace(Web(users=Secret(f"file:{users}"), tokens=Secret(f"file:{tokens}")), **changed)
    clock, steady = FakeClock(), Monotonic()
    guard = Guard(
        web, clock, sessions or Sessions(), forwarding=[Network.parse(each) for each in forwarding], monotonic=steady
    )
    readers = Readers(msgspec.structs.replace(config, web=web), clock)
    app = create_app(readers, clock, guard)
    with contextlib.closing(readers), stage_app(app) as url:
        made = Entrance(url, users, tokens, clock, steady)
        with contextlib.closing(made.browser):
            yield made


def behind_proxy(*networks: str, operators: tuple[str, ...] = ("anna",)) -> WebProxy:
    """Return the settings of a proxy at these addresses."""
    return WebProxy(networks=[Network.parse(each) for each in networks], operators=list(operators))
