"""Both ends of an inbox: a realistic sender and a downstream service, each with a ledger."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import msgspec

from tests.helpers.scripted import Act, ScriptedServer, Seen, answer, hang_up
from tests.helpers.waiting import LONGEST_SECONDS
from tests.helpers.webhooks import HEADERS, PATH, body, moment

Line = dict[str, Any]


class Ledger:
    """An append-only file of numbered lines; thread-safe."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._lines: list[Line] = []

    def append(self, **line: object) -> None:
        """Append a line with its number `n` and monotonic time `at` in seconds, and flush it."""
        with self._lock:
            numbered = {"n": len(self._lines) + 1, "at": time.monotonic(), **line}
            self._lines.append(numbered)
            self._file.write(json.dumps(numbered) + "\n")
            self._file.flush()

    def lines(self) -> list[Line]:
        """Return all lines so far."""
        with self._lock:
            return list(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


OK, FAILED, UNKNOWN = "ok", "failed", "unknown"
SLOWLY = 1.0
Change = tuple[str, str]
"""Id of the entity, and time of its change."""
ENTITIES = 60


def endless(entities: int = ENTITIES) -> Iterator[Change]:
    """Yield changes of so many entities in turn, a millisecond apart."""
    return ((f"u{n % entities}", moment(n)) for n in count())


def events(number: int, entities: int = ENTITIES) -> list[Change]:
    """Return the first `number` changes."""
    return list(islice(endless(entities), number))


class Sender:
    """Sends events, perhaps endlessly, over several connections in about the given order.

    `sends` has two lines for each request: before it is sent (without an `outcome`), and after its response: ok (200, with
    its `seq` and `answer`), failed (any other `status`, with `retry_after`) or unknown (no whole response).
    With `tls` it connects to a proxy.
    While `slowly_after(n)` is true for the `n` accepted events, each connection begins at most one event in SLOWLY seconds.
    """

    def __init__(
        self,
        path: Path,
        port: int,
        events: Iterable[Change],
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the sender."""
        self.stop()

    @property
    def is_done(self) -> bool:
        """True when every event was sent or given up."""
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def acknowledged(self) -> int:
        """Count of requests answered 200 so far."""
        return self._outcomes[OK]

    @property
    def refused(self) -> int:
        """Count of requests with another response so far."""
        return self._outcomes[FAILED]

    def enough(self) -> None:
        """Begin no other event; repeat the begun ones until they are acknowledged."""
        self._enough.set()

    def stop(self) -> None:
        """Stop sending, even unacknowledged events."""
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

    def _take(self) -> Change | None:
        with self._taking:
            return None if self._enough.is_set() else next(self._events, None)

    def _send(self, connection: http.client.HTTPConnection, event: Change) -> None:
        for _ in range(self._tries):
            if self._stopped.is_set() or self._try(connection, event):
                return
            self._stopped.wait(0.1)

    def _try(self, connection: http.client.HTTPConnection, event: Change) -> bool:
        entity, occurred_at = event
        payload = body(entity, occurred_at)
        about = {"entity": entity, "occurred_at": occurred_at, "body": payload.decode()}
        self.sends.append(**about, outcome=None)
        try:
            connection.request("POST", PATH, body=payload, headers=dict(HEADERS))
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request reconnects
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


class Answer(msgspec.Struct, frozen=True):
    """Response to a request."""

    status: int = 200
    seconds: float = 0.0
    """Extra seconds before the response."""
    sent: bool = True
    """False to drop the connection after processing the request."""


Script = Callable[[int, int], int | Answer]
"""(seq, attempt) → the response; a number is a status."""


def always_well(_seq: int, _attempt: int) -> int:
    """Answer 200, always."""
    return 200


class Held:
    """A script that holds all responses after the first `passing` until `go` is set. `seqs` lists the arrivals."""

    def __init__(self, passing: int = 0) -> None:
        self.seqs: list[int] = []
        self.go = threading.Event()
        self._passing = passing

    def __call__(self, seq: int, _attempt: int) -> int:
        self.seqs.append(seq)
        if len(self.seqs) > self._passing:
            self.go.wait(LONGEST_SECONDS)
        return 200


class Downstream(ScriptedServer):
    """A downstream service that takes `seconds` for each request. `arrivals` has a line for each.

    A line has `seq`, `run`, `attempt`, `entity`, `occurred_at`, `body`, the `status` of the response, and `sent` if it was
    not sent. `caller` is the path of the URL beyond `url`. `events` is the set of all seqs.
    """

    def __init__(self, path: Path, script: Script = always_well, seconds: float = 0.0) -> None:
        self.arrivals = Ledger(path)
        self.events: set[int] = set()
        self.seconds = seconds
        self.script = script
        super().__init__()
        self.url += "/hook"

    def act_for(self, seen: Seen) -> Act:
        """Record the request in the ledger, not in `seen`, which would grow too large."""
        seq, attempt = int(seen.headers["inbox-seq"]), int(seen.headers["inbox-attempt"])
        told = self.script(seq, attempt)
        made = Answer(told) if isinstance(told, int) else told
        event = json.loads(seen.body)
        self.events.add(seq)
        self.arrivals.append(
            seq=seq,
            run=int(seen.headers["idempotency-key"].rpartition("-")[2]),
            attempt=attempt,
            entity=event.get("id"),
            occurred_at=event.get("timestamp"),
            body=seen.body.decode(),
            status=made.status,
            caller=seen.target.removeprefix("/hook").strip("/"),
            **({} if made.sent else {"sent": False}),
        )
        self.closing.wait(self.seconds + made.seconds)
        return answer(made.status) if made.sent else hang_up

    def close(self) -> None:
        """Stop the service."""
        super().close()
        self.arrivals.close()


@contextlib.contextmanager
def serving(path: Path, script: Script = always_well, seconds: float = 0.0) -> Iterator[Downstream]:
    """Run a downstream service for the block."""
    with contextlib.closing(Downstream(path, script, seconds)) as downstream:
        yield downstream


@contextlib.contextmanager
def never_greeting() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Run a service that accepts connections and stays silent; yields its URL, and whether one has come."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        taken: list[socket.socket] = []

        def has_come() -> bool:
            with contextlib.suppress(BlockingIOError):
                taken.append(stack.enter_context(listener.accept()[0]))
            return bool(taken)

        yield f"https://127.0.0.1:{listener.getsockname()[1]}/hook", has_come
