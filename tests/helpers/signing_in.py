"""The page with its real access: a users file, a tokens file and a proxy, and clocks that stand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import argon2
import msgspec
import requests

from inbox.config.model import Config, Web, WebProxy
from inbox.config.values import Network, Secret
from relay.accounts import hash_password, hash_token
from relay.web.app import create_app
from relay.web.guard import Guard, Sessions
from relay.web.reading import Readers
from tests.helpers.page import staged
from tests.helpers.relaying import FakeClock, Monotonic

FAST = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Hashes that a test need not wait for."""
PASSWORD, OTHER_PASSWORD = "correct horse battery", "another long password"
TOKEN, VIEWER_TOKEN = "irw_of-an-operator", "irw_of-a-viewer"


def user(name: str, role: str = "operator", password: str = PASSWORD) -> str:
    """A line of the users file."""
    return f"{name}:{role}:{hash_password(password, FAST)}\n"


def token(name: str, value: str, role: str) -> str:
    """A line of the tokens file."""
    return f"{name}:{role}:{hash_token(value)}\n"


class Entrance:
    """The page of one configuration. Requests have a browser's headers unless others are given, and follow nothing."""

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
        return self.send("GET", path, _named(headers))

    def post(self, path: str, form: Mapping[str, str] = {}, **headers: str) -> requests.Response:  # it is not changed
        """POST a form as the page itself does, unless `sec_fetch_site` says otherwise."""
        sent = {"sec_fetch_site": "same-origin", **headers}
        return self.send("POST", path, _named({name: value for name, value in sent.items() if value}), data=dict(form))

    def sign_in(self, name: str = "anna", password: str = PASSWORD, following: str = "/rejected") -> requests.Response:
        return self.post("/sign-in", {"name": name, "password": password, "next": following})

    def later(self, seconds: float) -> None:
        """Move both clocks on."""
        self.clock.advance(seconds)
        self.steady.seconds += seconds


def _named(headers: Mapping[str, str]) -> dict[str, str]:
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
    """The page with the users anna (operator) and veikko (viewer), and a token of each role."""
    users, tokens = folder / "users", folder / "tokens"
    users.write_text(f"# people\n\n{user('anna')}{user('veikko', 'viewer', OTHER_PASSWORD)}")
    tokens.write_text(token("script", TOKEN, "operator") + token("graph", VIEWER_TOKEN, "viewer"))
    web = msgspec.structs.replace(Web(users=Secret(f"file:{users}"), tokens=Secret(f"file:{tokens}")), **changed)
    clock, steady = FakeClock(), Monotonic()
    guard = Guard(
        web,
        clock,
        sessions or Sessions(),
        forwarding=[Network.parse(each) for each in forwarding],
        monotonic=steady,
    )
    readers = Readers(msgspec.structs.replace(config, web=web), clock)
    app = create_app(readers, clock, guard)
    with contextlib.closing(readers), staged(app) as url:
        made = Entrance(url, users, tokens, clock, steady)
        with contextlib.closing(made.browser):
            yield made


def behind_proxy(*networks: str, operators: tuple[str, ...] = ("anna",)) -> WebProxy:
    """A proxy at these addresses."""
    return WebProxy(networks=[Network.parse(each) for each in networks], operators=list(operators))
