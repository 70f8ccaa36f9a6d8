"""Random requests never make the real receiver answer 5xx except 503, die, leak memory, or answer 200 without storing.

`FUZZ_SEED` chooses the requests, `FUZZ_REQUESTS` their number: `make fuzz REQUESTS=50000 SEED=1`.
"""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as Folder
from posixpath import normpath
from urllib.parse import unquote

import pytest
from sqlalchemy import Engine

from inbox.errors import MappingError
from relay.sync.expressions import decode, encode
from relay.sync.templates import Path, Template
from tests.helpers import fuzzing
from tests.helpers.directory import parse_filter
from tests.helpers.fuzzing import Exchange
from tests.helpers.processes import site
from tests.helpers.receiver import answers, ask, memory_of, webhook
from tests.helpers.tables import rows
from tests.helpers.webhooks import config_text
from tests.process import malformed, malformed_events

SEED = int(os.environ.get("FUZZ_SEED", "1"))
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "2000"))
MOST_GROWTH = 20 * 1024 * 1024
EXAMPLES = [case.sent for case in (*malformed.TABLE, *malformed_events.TABLE) if len(case.sent) < 20_000]
SEEN = {200, 400, 401, 404, 405, 413, 414, 415, 417, 422, 431}
"""Statuses that must occur among 2,000 requests."""


def read_bodies(engine: Engine) -> Callable[[int], bytes | None]:
    bodies = {row["seq"]: bytes(row["body"]) for row in rows(engine, "SELECT seq, body FROM inbox_payload")}
    return bodies.get


def describe(exchanges: list[Exchange], body_of: Callable[[int], bytes | None]) -> list[str]:
    """Return a line for each exchange with a violation."""
    return [
        f"FUZZ_SEED={SEED}: {wrong}: {exchange.sent[:500]!r} → {(exchange.received or b'')[:200]!r}"
        for exchange in exchanges
        if (wrong := fuzzing.objections(exchange, body_of))
    ]


def unusable(engine: Engine) -> list[str]:
    """Return a line for each stored event whose body, or id in a query or path, a relay cannot use."""
    query = Template("externalId eq {event.entity_id:scim}", "find", ("event",))
    path = Path("/user/{event.entity_id}", "fetch", ("event",))
    wrong = []
    for row in rows(engine, "SELECT seq, body, entity_id FROM inbox JOIN inbox_payload USING (seq)"):
        scope = {"event": {"entity_id": row["entity_id"]}}
        try:
            encode(decode(bytes(row["body"])))
            passes = parse_filter(query.expand(scope))
            if not passes({"externalId": row["entity_id"]}) or passes({"externalId": "", "userName": "admin"}):
                wrong.append(f"{row['seq']}: another is found for {row['entity_id']!r}")
            with suppress(MappingError):
                if not normpath(unquote(unquote(path.expand(scope)))).startswith("/user/"):
                    wrong.append(f"{row['seq']}: {row['entity_id']!r} leads elsewhere")
        except (ValueError, ArithmeticError) as error:
            wrong.append(f"{row['seq']}: {error!r}")
    return wrong


@pytest.mark.long
def test_random_requests_are_answered_right_and_leave_the_worker_as_it_was(
    module_database_url: str, module_engine: Engine, tmp_path: Folder
) -> None:
    requests = [fuzzing.make_request(SEED, number, EXAMPLES) for number in range(1, REQUESTS + 1)]
    with site(tmp_path, config_text(module_database_url)) as place:
        program, port = place.receiver(workers=1)
        (worker,) = program.children()
        exchanges = fuzzing.run(port, requests[: REQUESTS // 4])  # fills all caches
        before = memory_of(worker)
        exchanges += fuzzing.run(port, requests[REQUESTS // 4 :])

        assert describe(exchanges, read_bodies(module_engine)) == []
        assert unusable(module_engine) == []
        assert program.children() == [worker]
        assert [answer.status for answer in answers(ask(port, webhook()))] == [200]
        assert memory_of(worker) - before < MOST_GROWTH
        assert "Traceback" not in program.output
    seen = fuzzing.statuses(exchanges)
    assert seen.keys() >= SEEN, seen
    assert seen[200] > REQUESTS // 20, seen


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Run a server that always gives the same response; yields its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                pass
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def saying(status: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


KNOWN = saying("200 OK", b'{"status":"duplicate","seq":7}')


@pytest.mark.parametrize(
    ("sent", "answer", "wrong"),
    [
        (webhook(), saying("503 Service Unavailable"), []),
        (webhook(), saying("400 Bad Request"), []),
        (webhook(), KNOWN, []),
        (b"POST / HTTP/1.1\r\n\r\n", KNOWN, ["200 without the secret"]),
        (webhook(), saying("500 Internal Server Error"), ["500"]),
        (webhook(), saying("502 Bad Gateway"), ["502"]),
        (webhook(), saying("200 OK", b'{"status":"accepted","seq":8}'), ["200 for 8, which is not stored"]),
        (webhook(), saying("200 OK", b'{"status":"accepted","seq":7}'), ["200 for 7, which has another body"]),
        (webhook(), saying("200 OK"), ["200 for a webhook, without a seq"]),
        (webhook(), b"", ["no answer"]),
        (webhook(), saying("400 Bad Request", b"so")[:-1], ["no answer of HTTP: an answer is cut"]),
    ],
)
def test_only_a_server_that_breaks_a_rule_is_caught(sent: bytes, answer: bytes, wrong: list[str]) -> None:
    with answering(answer) as port:
        (exchange,) = fuzzing.run(port, [sent])
    assert fuzzing.objections(exchange, {7: b"another"}.get) == wrong


def test_a_server_that_never_ends_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "WITHIN_SECONDS", 0.1)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        (exchange,) = fuzzing.run(server.server_address[1], [webhook()])
    assert fuzzing.objections(exchange, lambda _: None) == ["no end"]
