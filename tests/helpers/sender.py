"""A sender that behaves as real ones do: it repeats what was not answered 200, and never knows what became of a lost answer."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path

from tests.helpers.traffic import Ledger

from tests.helpers.webhooks import HEADERS, PATH, body, moment

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"
SLOWLY = 1.0
Event = tuple[str, str]
"""The entity's id, and when it changed."""
ENTITIES = 60


def endless(entities: int = ENTITIES) -> Iterator[Event]:
    """Changes of so many entities in turn, a millisecond after each other."""
    return ((f"u{n % entities}", moment(n)) for n in count())


def events(number: int, entities: int = ENTITIES) -> list[Event]:
    """The first so many of them."""
    return list(islice(endless(entities), number))


class Sender:
    """Sends events, of which there may be no end, over several connections at once, in about the order given.

    `sends` has two lines for each request: before it is sent (`outcome` is None), and after its answer: ok (200, with
    its `seq` and `answer`), failed (any other `status`; `retry_after` as it came) or unknown (no whole answer came).
    With `tls` it speaks to a proxy.
    As long as `slowly_after(n)` of the `n` events that were accepted, each connection begins with at most one event in SLOWLY
    seconds.
    """

    def __init__(
        self,
        path: Path,
        port: int,
        events: Iterable[Event],
        *,
        connections: int = 4,
        per_second: float = 1000.0,
        tries: int = 200,
        timeout: float = 10.0,
        slowly_after: Callable[[int], bool] = lambda _: False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.sends = Ledger(path)
        self._port = port
        self._events = iter(events)
        self._taking = threading.Lock()
        self._pause = connections / per_second
        self._tries = tries
        self._timeout = timeout
        self._slowly_after = slowly_after
        self._tls = tls
        self._accepted = 0
        self._outcomes: Counter[str] = Counter()
        self._enough = threading.Event()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"sender-{n}") for n in range(connections)]
        for thread in self._threads:
            thread.start()

    @property
    def is_done(self) -> bool:
        """Return whether every event was sent, or given up."""
        return not any(thread.is_alive() for thread in self._threads)

    def acknowledged(self) -> int:
        """Count the requests that were answered 200 so far."""
        return self._outcomes[OK]

    def refused(self) -> int:
        """Count the requests that got another answer so far."""
        return self._outcomes[FAILED]

    def enough(self) -> None:
        """Begin with no other event; those begun are repeated until they are acknowledged."""
        self._enough.set()

    def stop(self) -> None:
        """Send nothing more, acknowledged or not."""
        self._enough.set()
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self.sends.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
        return http.client.HTTPSConnection("localhost", self._port, timeout=self._timeout, context=self._tls)

    def _work(self) -> None:
        connection = self._connection()
        while (event := self._take()) is not None:
            began = time.monotonic()
            self._send(connection, event)
            pause = SLOWLY if self._slowly_after(self._accepted) else self._pause
            self._enough.wait(max(0.0, pause - (time.monotonic() - began)))
        connection.close()

    def _take(self) -> Event | None:
        with self._taking:
            return None if self._enough.is_set() else next(self._events, None)

    def _send(self, connection: http.client.HTTPConnection, event: Event) -> None:
        for _ in range(self._tries):
            if self._stopped.is_set() or self._try(connection, event):
                return
            self._stopped.wait(0.1)

    def _try(self, connection: http.client.HTTPConnection, event: Event) -> bool:
        entity, occurred_at = event
        payload = body(entity, occurred_at)
        about = {"entity": entity, "occurred_at": occurred_at, "body": payload.decode()}
        self.sends.append(**about, outcome=None)
        try:
            connection.request("POST", PATH, body=payload, headers=dict(HEADERS))
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens another
            self._note(about, outcome=UNKNOWN)
            return False
        if response.status != 200:
            retry_after = response.headers["Retry-After"]
            self._note(about, outcome=FAILED, status=response.status, retry_after=retry_after)
            return False
        told = json.loads(answer)
        self._note(about, outcome=OK, seq=told["seq"], answer=told["status"])
        return True

    def _note(self, about: dict[str, str], *, outcome: str, **more: object) -> None:
        self.sends.append(**about, outcome=outcome, **more)
        with self._taking:
            self._outcomes[outcome] += 1
            self._accepted += more.get("answer") == "accepted"
