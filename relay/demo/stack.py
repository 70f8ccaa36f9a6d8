"""The whole product with both demo services: started, checked, and stopped in order in every case."""

from __future__ import annotations

import random
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import requests

from relay.demo import workspace
from relay.demo.commands import RelayCommands
from relay.demo.commercial import CommercialService
from relay.demo.events import DemoEvents
from relay.demo.identity import IdentityService
from relay.demo.ledger import Ledger
from relay.demo.processes import Child, DemoError
from relay.demo.web import served
from relay.demo.webhooks import WebhookSender
from relay.store.database import Database
from relay.web.access.accounts import hash_password

LATENCY_SECONDS = 0.015
"""Latency of the commercial service: that of a good one across a network."""
FAIL_SHARE = 0.1
SLOW_SHARE = 0.1
"""The share of updates that the identity service doesn't show to the first read."""
PAGE_USER = "demo"
PAGE_PORT = 8025
"""The operator's page gets it where it is free."""
_START_SECONDS = 30.0
_RECEIVER_GRACE_SECONDS = 18.0  # gunicorn gives its workers 15
_PAGE_GRACE_SECONDS = 12.0  # gunicorn gives its worker 10
_RELAY_GRACE_SECONDS = 25.0  # the relay gives running calls 20
_POLL_SECONDS = 0.05
_LAST_WEBHOOKS_SECONDS = 2.0


class Stack:
    """All parts of the demo, running. Main thread only."""

    def __init__(
        self,
        exits: ExitStack,
        events: DemoEvents,
        starting: Callable[[str], None],
        folder: Path,
        database_url: str | None,
        *,
        seed: int,
        lost_share: float = 0.0,
        with_page: bool = False,
    ) -> None:
        """Start all parts; `exits` stops them in order, also after a failed start.

        `starting` gets the name of each part; `seed` picks what fails; `lost_share` of the webhooks' answers gets lost;
        `with_page` also starts the operator's page.

        Raises:
            DemoError: a part does not start; the text says why and what to do.
            ConfigError: the database can't be used.
        """
        self._events, self._children = events, dict[str, Child]()
        starting("the database")
        self.folder = folder
        self.configuration_path = self.folder / "inbox.toml"
        self._environment = workspace.child_environment(self.configuration_path)
        self.page_url: str | None = None
        self.page_password = secrets.token_urlsafe(12)
        self.commands = RelayCommands(self.folder, self._environment, events.handle)
        database_url = workspace.absolute_url(database_url, self.folder)
        engine = workspace.prepare_database(database_url)
        exits.callback(engine.dispose)
        self.ledger = Ledger(Database(engine))
        starting("the demo services")
        self._start_services(exits, database_url, seed, lost_share)
        starting("the relay")
        exits.callback(self._stop_relay)
        self.start_relay()
        starting("the receiver")
        self._start_receiver(exits)
        exits.callback(self.webhooks.close)
        self.webhooks.url = f"{self.receiver_url}/webhooks/trivore"
        exits.callback(self.webhooks.wait_until_sent, _LAST_WEBHOOKS_SECONDS)
        if with_page:
            starting("the operator's page")
            self._start_page(exits)

    def _start_services(self, exits: ExitStack, database_url: str, seed: int, lost_share: float) -> None:
        token = secrets.token_urlsafe(16)
        lost, slow, failures = (random.Random(f"{seed} {of}") for of in ("answers", "replicas", "failures"))  # noqa: S311  # luck
        self.webhooks = WebhookSender(
            headers={"X-Webhook-Token": token},
            on_webhook=self._events.put,
            loses_answer=lambda: lost.random() < lost_share,
        )
        exits.callback(self.webhooks.close)
        self.identity = IdentityService(self.webhooks, is_slow=lambda: slow.random() < SLOW_SHARE)
        self.commercial = CommercialService(
            fail_share=FAIL_SHARE, rng=failures, latency=LATENCY_SECONDS, on_call=self._events.put
        )
        self.identity_url = exits.enter_context(served(self.identity.app))
        self._commercial_server = exits.enter_context(ExitStack())
        self.commercial_url = self._commercial_server.enter_context(served(self.commercial.app))
        self.is_commercial_up = True
        users = self.folder / "users"
        hashed = hash_password(self.page_password)
        workspace.write_private(users, f"{PAGE_USER}:operator:{hashed}\n")
        workspace.write_private(
            self.configuration_path,
            workspace.configuration(
                database_url=database_url,
                users=f"file:{users}",
                token=token,
                identity_url=self.identity_url,
                commercial_url=self.commercial_url,
            ),
        )

    def _start_receiver(self, exits: ExitStack) -> None:
        # The socket is made here and passed on, so nobody can take the port between choosing and using it.
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.receiver_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            bind = ("--bind", f"fd://{listener.fileno()}")
            self._start(
                "receiver", ["-m", "gunicorn", "-c", "python:inbox.gunicorn_settings", *bind], listener.fileno()
            )
        exits.callback(self.receiver.stop, _RECEIVER_GRACE_SECONDS)
        with requests.Session() as session:
            session.trust_env = False  # no proxy between parts of one host
            self._until_ready(self.receiver, lambda: _answers(session, f"{self.receiver_url}/health/ready"))

    def _start_page(self, exits: ExitStack) -> None:
        with _listener(PAGE_PORT) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            bind = ("--bind", f"fd://{listener.fileno()}")
            self._start(
                "page", ["-m", "gunicorn", "-c", "python:relay.web.gunicorn_settings", *bind], listener.fileno()
            )
        page = self._children["page"]
        exits.callback(page.stop, _PAGE_GRACE_SECONDS)
        with requests.Session() as session:
            session.trust_env = False
            self._until_ready(page, lambda: _answers(session, f"{url}/health/live"))
        self.page_url = url

    def stop_commercial(self) -> None:
        """Stop the commercial service: connections to it are refused. Its records stay."""
        self._commercial_server.close()
        self.is_commercial_up = False

    def start_commercial(self) -> None:
        """Start it again at the same address.

        Raises:
            DemoError: another program has its port by now.
        """
        port = int(self.commercial_url.rpartition(":")[2])
        try:
            self._commercial_server.enter_context(served(self.commercial.app, port))
        except OSError as error:
            raise DemoError(f"can't start the commercial service again on port {port}: {error.strerror}") from None
        self.is_commercial_up = True

    def start_relay(self) -> None:
        """Start a relay and wait until it works; raise DemoError when it doesn't."""
        self._start("relay", ["-m", "relay", "run", "--verbose"])
        self._until_ready(self.relay, lambda: self.ledger.is_running(self.relay.pid))

    def kill_relay(self) -> None:
        """End the relay with SIGKILL. `check` misses none until the next is started."""
        self._children.pop("relay").kill()

    def _stop_relay(self) -> None:
        if "relay" in self._children:
            self.relay.stop(_RELAY_GRACE_SECONDS)

    @property
    def relay(self) -> Child:
        """The relay; there is none between `kill_relay` and `start_relay`."""
        return self._children["relay"]

    @property
    def receiver(self) -> Child:
        """The receiver."""
        return self._children["receiver"]

    def check(self) -> None:
        """Raise DemoError with the end of its log when the receiver, the relay or the page has ended."""
        for child in self._children.values():
            child.check()

    def is_settled(self) -> bool:
        """Return true when every webhook was accepted and the relay has nothing left to do."""
        return not self.webhooks.pending() and not self.ledger.progress()["still_open"]

    def _start(self, name: str, arguments: list[str], *pass_fds: int) -> None:
        self._children[name] = Child(name, arguments, self.folder, self._environment, *pass_fds)

    def _until_ready(self, child: Child, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            child.check()
            if time.monotonic() > deadline:
                late = f"has not begun to work within {_START_SECONDS:.0f} s; the end of {child.log}:\n{child.tail()}"
                raise DemoError(f"the {child.name} {late}")
            self._events.wait(_POLL_SECONDS)


def _listener(wanted: int) -> socket.socket:
    """Listen on this port, or on any where another program has it."""
    try:
        return socket.create_server(("127.0.0.1", wanted))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _answers(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=2).ok
    except requests.RequestException:
        return False
