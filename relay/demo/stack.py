"""The whole product with both demo services: started, checked, and stopped in order in every case."""

from __future__ import annotations

import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import requests

from relay.demo import workspace
from relay.demo.commands import RelayCommands
from relay.demo.commercial import CommercialService
from relay.demo.events import DemoEvents
from relay.demo.identity import IdentityService
from relay.demo.ledger import Ledger
from relay.demo.processes import Child, DemoError
from relay.demo.web import LocalServer
from relay.demo.webhooks import WebhookSender
from relay.store.database import Database

LATENCY_SECONDS = 0.015
"""Latency of the commercial service: that of a good one across a network."""
FAIL_SHARE = 0.1
SLOW_SHARE = 0.1
"""Of the updates, those that the identity service doesn't show to the first read."""
_START_SECONDS = 30.0
_RECEIVER_GRACE_SECONDS = 18.0  # gunicorn gives its workers 15
_RELAY_GRACE_SECONDS = 25.0  # the relay gives running calls 20
_POLL_SECONDS = 0.05
_LAST_WEBHOOKS_SECONDS = 2.0


class Stack:
    """All parts of the demo. A context manager: leaving it stops everything, also after a failed start.

    Main thread only. `starting` gets the name of each part before it starts.
    """

    def __init__(
        self,
        events: DemoEvents,
        *,
        folder: Path | None,
        database_url: str | None,
        seed: int,
        lost_share: float = 0.0,
        starting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet. `seed` picks what fails; `lost_share` of the webhooks' answers gets lost."""
        self._events, self._starting = events, starting
        self._given_folder, self._given_database_url = folder, database_url
        self._seed, self._lost_share = seed, lost_share
        self._exits = ExitStack()
        self._relay: Child | None = None

    def __enter__(self) -> Self:
        with self._exits:  # stops the parts that have started when another does not start
            self._start()
            self._exits = self._exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _start(self) -> None:
        self._starting("the database")
        self.folder = workspace.prepare_folder(self._given_folder)
        self.configuration_path = self.folder / "inbox.toml"
        self._environment = workspace.child_environment(self.configuration_path)
        database_url = workspace.absolute_url(self._given_database_url, self.folder)
        engine = workspace.prepare_database(database_url)
        self._exits.callback(engine.dispose)
        self.ledger = Ledger(Database(engine))
        self.commands = RelayCommands(self.folder, self._environment, self._events.handle)
        self._starting("the demo services")
        self._start_services(database_url)
        self._starting("the relay")
        self._exits.callback(self._stop_relay)
        self.start_relay()
        self._starting("the receiver")
        self._start_receiver()
        self._exits.callback(self.identity.webhooks.close)
        self.identity.webhooks.url = f"{self.receiver_url}/webhooks/trivore"
        self._exits.callback(self.identity.webhooks.wait_until_sent, _LAST_WEBHOOKS_SECONDS)

    def _start_services(self, database_url: str) -> None:
        token = secrets.token_urlsafe(16)
        lost, slow, failures = (random.Random(f"{self._seed} {what}") for what in ("answers", "replicas", "failures"))  # noqa: S311  # luck, not secrecy
        webhooks = WebhookSender(
            headers={"X-Webhook-Token": token},
            on_webhook=self._events.put,
            loses_answer=lambda: lost.random() < self._lost_share,
        )
        self._exits.callback(webhooks.close)
        self.identity = IdentityService(webhooks, is_slow=lambda: slow.random() < SLOW_SHARE)
        self.commercial = CommercialService(
            fail_share=FAIL_SHARE, rng=failures, latency=LATENCY_SECONDS, on_call=self._events.put
        )
        self.identity_url = self._exits.enter_context(LocalServer(self.identity.app)).url
        self.commercial_url = self._exits.enter_context(LocalServer(self.commercial.app)).url
        workspace.write_private(
            self.configuration_path,
            workspace.configuration(
                database_url=database_url,
                token=token,
                identity_url=self.identity_url,
                commercial_url=self.commercial_url,
            ),
        )

    def _start_receiver(self) -> None:
        # The socket is made here and passed on, so nobody can take the port between choosing and using it.
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.receiver_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            bind = f"fd://{listener.fileno()}"
            self.receiver = Child(
                "receiver",
                ["-m", "gunicorn", "-c", "python:inbox.serve", "--bind", bind],
                self.folder,
                self._environment,
                (listener.fileno(),),
            )
        self._exits.callback(self.receiver.stop, _RECEIVER_GRACE_SECONDS)
        with requests.Session() as session:
            session.trust_env = False  # no proxy between parts of one host
            self._until_ready(self.receiver, lambda: _is_ready(session, self.receiver_url))

    def start_relay(self) -> None:
        """Starts a relay and waits until it works.

        Raises:
            DemoError: it does not start; the text says why and what to do.
        """
        self._relay = relay = Child("relay", ["-m", "relay", "run", "--verbose"], self.folder, self._environment)
        self._until_ready(relay, lambda: self.ledger.is_running(relay.pid))

    def kill_relay(self) -> None:
        """Ends the relay with SIGKILL. `check` misses none until the next is started."""
        self.relay.kill()
        self._relay = None

    @property
    def relay(self) -> Child:
        """The relay.

        Raises:
            DemoError: there is none at present.
        """
        if self._relay is None:
            raise DemoError("there is no relay at present")
        return self._relay

    def check(self) -> None:
        """Makes sure that the receiver and the relay still run.

        Raises:
            DemoError: one has ended; the text holds the end of its log.
        """
        self.receiver.check()
        if self._relay is not None:
            self._relay.check()

    def is_settled(self) -> bool:
        """Whether every webhook was accepted, and the relay has nothing left to do."""
        return not self.identity.webhooks.pending() and not self.ledger.progress().to_do

    @contextmanager
    def without_failures(self) -> Iterator[None]:
        """Inside, no call fails on purpose: a command makes its calls once."""
        self.commercial.fail_share = 0.0
        try:
            yield
        finally:
            self.commercial.fail_share = FAIL_SHARE

    def _stop_relay(self) -> None:
        if self._relay is not None:
            self._relay.stop(_RELAY_GRACE_SECONDS)

    def _until_ready(self, child: Child, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            child.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the {child.name} has not begun to work within {_START_SECONDS:.0f} s; "
                    f"the end of {child.log}:\n{child.tail()}"
                )
            self._events.wait(_POLL_SECONDS)


def _is_ready(session: requests.Session, url: str) -> bool:
    try:
        return session.get(f"{url}/health/ready", timeout=2).ok
    except requests.RequestException:
        return False
