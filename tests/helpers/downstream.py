"""A downstream service that answers by a script and notes every request in a ledger before it answers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from tests.helpers.traffic import Ledger

from tests.helpers.scripted import Act, ScriptedServer, Seen, answer, hang_up
from tests.helpers.waiting import LONGEST_SECONDS


class Answer(msgspec.Struct, frozen=True):
    """Answer to a request."""

    status: int = 200
    seconds: float = 0.0
    """It takes so much longer."""
    sent: bool = True
    """False: the connection is dropped after the request was processed, and nobody learns of it."""


Script = Callable[[int, int], int | Answer]
"""(seq, attempt) → what to answer; a number is a status."""


def always_well(_seq: int, _attempt: int) -> int:
    """A service without a bad day."""
    return 200


class Held:
    """A script: but for the first `passing`, nobody is answered before `go` is set. `seqs` has those that came."""

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
    """Takes `seconds` for each request. `arrivals` has a line for each.

    Of a line: `seq`, `run`, `attempt`, `entity`, `occurred_at`, `body`, the `status` it comes to, and whether that was
    `sent`, which is so unless the line says otherwise. `caller` is what the URL ended in beyond `url`. `events` has the
    `seq` of everything that came, once.
    """

    def __init__(self, path: Path, script: Script = always_well, seconds: float = 0.0) -> None:
        self.arrivals = Ledger(path)
        self.events: set[int] = set()
        self.seconds = seconds
        self.script = script
        super().__init__()
        self.url += "/hook"

    def act_for(self, seen: Seen) -> Act:
        """Note the request in the ledger, and not in `seen`: there may be very many."""
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
        """Answer nobody any more."""
        super().close()
        self.arrivals.close()


@contextlib.contextmanager
def serving(path: Path, script: Script = always_well, seconds: float = 0.0) -> Iterator[Downstream]:
    """A downstream service as long as the block runs."""
    with contextlib.closing(Downstream(path, script, seconds)) as downstream:
        yield downstream


@contextlib.contextmanager
def never_greeting() -> Iterator[tuple[str, Callable[[], bool]]]:
    """The URL of a service that takes connections and says nothing, not even TLS's hello; and whether one has come."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        taken: list[socket.socket] = []

        def has_come() -> bool:
            with contextlib.suppress(BlockingIOError):
                taken.append(stack.enter_context(listener.accept()[0]))
            return bool(taken)

        yield f"https://127.0.0.1:{listener.getsockname()[1]}/hook", has_come
