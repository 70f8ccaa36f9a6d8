"""The whole product with both demo services: started, checked, and stopped in order whatever happens."""

from __future__ import annotations

import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import requests

from inbox.clock import Clock, SystemClock
from relay.demo import commercial, ground, identity
from relay.demo.happenings import CallMade, Happenings
from relay.demo.ledger import Ledger
from relay.demo.orders import Orders
from relay.demo.processes import Child, DemoError
from relay.demo.records import CONTACT, TEAM
from relay.demo.server import serve
from relay.store.database import Database

LATENCY_SECONDS = 0.015
"""How long the commercial service thinks about a call: as fast as a good one across a network."""

FAIL_SHARE = 0.1
SLOW_SHARE = 0.1
"""Of the updates, those that whoever asks the identity service is not shown at once."""
_START_SECONDS = 30.0
_RECEIVER_GRACE_SECONDS = 18.0  # gunicorn gives its workers 15
_RELAY_GRACE_SECONDS = 25.0  # the relay gives running calls 20
_POLL_SECONDS = 0.05
_LAST_WEBHOOKS_SECONDS = 2.0


class Stack:
    """Everything that the demo runs. A context manager: leaving it stops everything, also what had started half-way.

    Main thread only. `starting` is told the name of each part before it starts.
    """

    def __init__(
        self,
        happenings: Happenings,
        *,
        folder: Path | None,
        database_url: str | None,
        luck: str,
        lost_share: float = 0.0,
        starting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing runs yet. `luck` seeds what fails; `lost_share` of the webhooks' answers gets lost."""
        self._happenings, self._starting = happenings, starting
        self._given_folder, self._given_database_url = folder, database_url
        self._luck, self._lost_share = luck, lost_share
        self._exits = ExitStack()
        self._relay: Child | None = None

    def __enter__(self) -> Self:
        with self._exits:  # what has started is stopped when the rest does not start
            self._start()
            self._exits = self._exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _start(self) -> None:
        self._starting("the database")
        self.folder = ground.prepare_folder(self._given_folder)
        self.database_url = ground.absolute_url(self._given_database_url, self.folder)
        engine = ground.prepare_database(self.database_url)
        self._exits.callback(engine.dispose)
        self.ledger = Ledger(Database(engine))
        self._start_services()
        self.orders = Orders(self.folder, ground.child_environment(self.configuration_path), self._happenings.hear)
        self._starting("the relay")
        self._exits.callback(self._stop_relay)
        self.start_relay()
        self._starting("the receiver")
        self._start_receiver()
        self._exits.callback(self.identity.close)
        self.identity.send_webhooks_to(f"{self.receiver_url}/webhooks/trivore")
        self._exits.callback(self.identity.wait_until_sent, _LAST_WEBHOOKS_SECONDS)

    def _start_services(self) -> None:
        self._starting("the demo services")
        token = secrets.token_urlsafe(16)
        luck = random.Random(f"{self._luck} answers")  # noqa: S311  # luck, not secrecy
        slowness = random.Random(f"{self._luck} replicas")  # noqa: S311  # likewise
        self.identity = identity.create_app(
            webhook_headers={"X-Webhook-Token": token},
            on_webhook=self._happenings.webhook,
            now=strictly_later(SystemClock()),
            loses_answer=lambda: luck.random() < self._lost_share,
            is_slow=lambda: slowness.random() < SLOW_SHARE,
        )
        self._exits.callback(self.identity.close)
        self.commercial = commercial.create_app(
            fail_share=FAIL_SHARE,
            rng=random.Random(f"{self._luck} failures"),  # noqa: S311  # likewise
            on_call=self._called,
        )
        identity_server = self._exits.enter_context(serve(self.identity.app))
        commercial_server = self._exits.enter_context(serve(self.commercial.app))
        self.identity_url, self.commercial_url = identity_server.url, commercial_server.url
        self.configuration_path = self.folder / "inbox.toml"
        ground.write_private(
            self.configuration_path,
            ground.configuration(
                database_url=self.database_url,
                token=token,
                identity_url=self.identity_url,
                commercial_url=self.commercial_url,
            ),
        )

    def is_settled(self) -> bool:
        """Whether every webhook was accepted, and nothing is left that the relay would do."""
        return not self.identity.pending_webhooks() and not self.ledger.progress().to_do

    @contextmanager
    def well(self) -> Iterator[None]:
        """Inside, no call fails on purpose: what a person asks is asked once."""
        self.commercial.fail_share = 0.0
        try:
            yield
        finally:
            self.commercial.fail_share = FAIL_SHARE

    def _called(self, method: str, path: str, status: int, body: dict[str, Any] | None) -> None:
        created = None
        if status == HTTPStatus.CREATED and body is not None:
            record_type = CONTACT if path == f"/{CONTACT.path}" else TEAM
            record = self.commercial.find(record_type, str(body.get("external_id")))
            created = None if record is None else f"{path}/{record['id']}"
        self._happenings.call(CallMade(method, path, status, body, created))
        time.sleep(LATENCY_SECONDS)  # on the thread that answers, before it does

    def _start_receiver(self) -> None:
        # The socket is made here and handed on, so nobody can take the port between choosing and using it.
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.receiver_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            bind = f"fd://{listener.fileno()}"
            self.receiver = self._child(
                "receiver", ["-m", "gunicorn", "-c", "python:inbox.serve", "--bind", bind], (listener.fileno(),)
            )
        self._exits.callback(self.receiver.stop, _RECEIVER_GRACE_SECONDS)
        with requests.Session() as session:
            session.trust_env = False  # no proxy between parts of one host
            self._until(self.receiver, lambda: _is_ready(session, self.receiver_url))

    def start_relay(self) -> None:
        """Start a relay and wait until it works.

        Raises:
            DemoError: it does not start; the text says why and what to do.
        """
        relay = self._relay = self._child("relay", ["-m", "relay", "run", "--verbose"])
        self._until(relay, lambda: self.ledger.is_up(relay.pid))

    def kill_relay(self) -> None:
        """End the relay with SIGKILL. `check` misses none until the next is started."""
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
        """Make sure that the receiver and the relay still run.

        Raises:
            DemoError: one has ended; the text holds the end of its log.
        """
        self.receiver.check()
        if self._relay is not None:
            self._relay.check()

    def _stop_relay(self) -> None:
        if self._relay is not None:
            self._relay.stop(_RELAY_GRACE_SECONDS)

    def _child(self, name: str, arguments: list[str], pass_fds: tuple[int, ...] = ()) -> Child:
        environment = ground.child_environment(self.configuration_path)
        return Child(name, arguments, folder=self.folder, environment=environment, pass_fds=pass_fds)

    def _until(self, child: Child, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            child.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the {child.name} has not begun to work within {_START_SECONDS:.0f} s; "
                    f"the end of {child.log}:\n{child.tail()}"
                )
            self._happenings.wait(_POLL_SECONDS)


def _is_ready(session: requests.Session, url: str) -> bool:
    try:
        return session.get(f"{url}/health/ready", timeout=2).ok
    except requests.RequestException:
        return False


def strictly_later(clock: Clock) -> Callable[[], datetime]:
    """The clock's time, but each time at least a millisecond later than before.

    Two changes of an entity within one millisecond give the same webhook, byte for byte, and the receiver takes the
    second for a repetition. Not for several threads at once.
    """
    latest: datetime | None = None

    def now() -> datetime:
        nonlocal latest
        present = clock.now()
        latest = present if latest is None else max(present, latest + timedelta(milliseconds=1))
        return latest

    return now
