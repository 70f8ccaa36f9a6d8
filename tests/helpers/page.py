"""The operator's page in this process: its real application, served by uvicorn in a thread, and a browser without a head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import pytest
import requests
from falcon.asgi import Request, Response

from inbox.clock import Clock
from inbox.config.model import Config, DatabaseSettings
from inbox.config.values import DatabaseUrl
from inbox.errors import SignInNeeded
from relay.accounts import Actor
from relay.web import plans, reading
from relay.web.app import create_app
from relay.web.reading import Readers
from relay.web.screens import lists
from tests.helpers.page import staged

OPERATOR = Actor("olga", "operator")
VIEWER = Actor("veikko", "viewer")
_HEADER = "X-Test-Actor"


def unhurried(patch: pytest.MonkeyPatch) -> None:
    """A busy machine must not cut a search, a plan or a statement of a page short."""
    for module in (reading, plans, lists):
        patch.setattr(module, "LONGEST_SECONDS", 60.0)


class GivenActor:
    """Access for tests: the person is who the request says; a request that says nobody has to sign in."""

    async def process_request(self, req: Request, _resp: Response) -> None:
        given = req.get_header(_HEADER)
        if given is None and req.path.startswith("/static/"):
            return
        if given is None:
            raise SignInNeeded("nobody is signed in")
        role, name = given.split(" ")
        req.context.actor = Actor(unquote(name), role)  # type: ignore[arg-type]  # a test says a role


class Page:
    """Requests to the page, by an operator unless another actor is given; None is nobody."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False

    def get(self, path: str, actor: Actor | None = OPERATOR, **options: Any) -> requests.Response:  # noqa: ANN401
        """GET a path as a browser does. No redirect is followed."""
        return self._send("GET", path, actor, {"Accept": "text/html"}, options)

    def json(self, path: str, actor: Actor | None = OPERATOR) -> Any:  # noqa: ANN401  # any JSON
        """GET a path that must answer 200 with JSON."""
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
        """POST a form as a browser on this page does. No redirect is followed."""
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
    """Return the same configuration on another database."""
    return msgspec.structs.replace(config, database=DatabaseSettings(url=DatabaseUrl(database_url)))


@contextlib.contextmanager
def serving(config: Config, clock: Clock) -> Iterator[Page]:
    """The page of a configuration, from its start to its end."""
    readers = Readers(config, clock)
    app = create_app(readers, clock, GivenActor())
    with contextlib.closing(readers), staged(app) as url, contextlib.closing(Page(url)) as page:
        yield page
