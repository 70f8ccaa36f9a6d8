"""The daemon itself, in a thread: what it does when a destination is down, paused or slow to be called, and whom it tells."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.gates import BreakerLimits, Gate
from relay.delivery.outcome import Delivery
from relay.delivery.policy import policies
from relay.store import alerts
from relay.store import claim as claims
from relay.store.claim import claim
from relay.store.database import Database
from relay.store.operator import commands, execution
from tests.helpers.daemon import configured, kinds, running
from tests.helpers.downstream import serving
from tests.helpers.evidence import open_states
from tests.helpers.filling import fill
from tests.helpers.reading import rows
from tests.helpers.relaying import work_of
from tests.helpers.waiting import until
from tests.helpers.webhooks import moment

BREAKER = 'breaker = { open_for = "300ms" }'


@pytest.fixture(autouse=True)
def _opens_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=3, longest=0.3))


class Chat:
    """Takes posts; `status` is what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.posts: list[dict[str, object]] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                chat.posts.append(json.loads(body))
                self.send_response(chat.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/services/T0/B0/s3cr3t"

    def config(self, form: str = "json") -> str:
        return f'[alerts]\nurl = "{self.url}"\nformat = "{form}"\nallow_private = true\nallow_http = true\n'


@pytest.fixture
def chat() -> Iterator[Chat]:
    made = Chat()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


class Unwell:
    """A script: 503 until it is told to be well."""

    def __init__(self, status: int = 503) -> None:
        self.status = status
        self.calls = 0

    def __call__(self, _seq: int, _attempt: int) -> int:
        self.calls += 1
        return self.status


def test_a_destination_that_is_down_is_left_alone_and_everything_arrives_when_it_is_well_again(
    database_url: str, engine: Engine, tmp_path: Path, chat: Chat
) -> None:
    seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(40)])
    script = Unwell()
    with (
        serving(tmp_path / "arrivals.jsonl", script) as downstream,
        running(engine, downstream, concurrency=2, destination=BREAKER, more=chat.config()),
    ):
        until(lambda: len(chat.posts) == 1, "somebody was told")
        assert script.calls < 40, "not each delivery had to find out for itself"
        script.status = 200
        until(lambda: not open_states(engine), "all are delivered")
        until(lambda: len(chat.posts) == 2, "somebody was told that it is well again")
        assert sorted({line["seq"] for line in downstream.arrivals.lines() if line["status"] == 200}) == seqs
    assert [(post["kind"], post["subject"], post["firing"]) for post in chat.posts] == [
        ("breaker_open", "destination audit", True),
        ("breaker_open", "destination audit", False),
    ]
    assert kinds(engine).count("delivered") == 40
    assert "dead" not in kinds(engine)


def test_a_410_stops_everything_until_a_person_resumes_it(database_url: str, engine: Engine, tmp_path: Path) -> None:
    fill(database_url, [(f"u{n}", moment(n)) for n in range(20)])
    script = Unwell(410)
    with (
        serving(tmp_path / "arrivals.jsonl", script) as downstream,
        running(engine, downstream, concurrency=2, destination=BREAKER),
    ):
        until(lambda: rows(engine, "SELECT 1 FROM gate WHERE breaker = 'retired'"), "it is retired")
        until(lambda: open_states(engine).keys() == {"ready"}, "what had been claimed has come back")
        called = script.calls
        fill(database_url, [("u99", moment(99))])
        until(lambda: open_states(engine) == {"ready": 21}, "what arrives waits")
        script.status = 200
        assert script.calls == called
        database = Database(engine)
        number = commands.ask(database, "resume", Gate(destination="audit"), who="kim", why="it was a mistake")
        until(lambda: not open_states(engine), "all are delivered")
        progress = commands.progress(database, number)
        assert progress is not None
        assert progress.answer == "resumed"


def test_a_pause_by_sql_is_kept_by_a_running_relay_until_it_is_lifted(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream, concurrency=2) as relay:
        database = Database(engine)
        gate = Gate(source="trivore", entity_type="USER", entity_id="u1")
        commands.ask(database, "pause", gate, who="kim", why="odd")
        until(lambda: relay._claimer.gates.paused_entities, "the relay keeps to it")
        seqs = fill(database_url, [("u1", moment(1)), ("u2", moment(2)), ("u1", moment(3)), ("u3", moment(4))])
        until(lambda: open_states(engine) == {"ready": 1, "waiting": 1}, "the others are delivered")
        commands.ask(database, "resume", gate, who="kim", why="fine")
        until(lambda: not open_states(engine), "all are delivered")
        of_u1 = [line["seq"] for line in downstream.arrivals.lines() if line["entity"] == "u1"]
        assert of_u1 == [seqs[0], seqs[2]]


def test_a_rate_is_kept(database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[float] = []

    def claiming(*arguments: Any, **named: Any) -> list[Delivery]:  # noqa: ANN401  # passed through
        began.append(time.monotonic())
        return claim(*arguments, **named)

    monkeypatch.setattr(claims, "claim", claiming)
    fill(database_url, [(f"u{n}", moment(n)) for n in range(30)])
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        running(engine, downstream, concurrency=2, destination='rate = "20/s"'),
    ):
        until(lambda: not open_states(engine), "all are delivered")
        at = [line["at"] for line in downstream.arrivals.lines()]
    assert at[-1] - began[0] >= (30 - 20) / 20 * 0.9


def test_a_drain_ends_though_something_is_held_back(database_url: str, engine: Engine, tmp_path: Path) -> None:
    fill(database_url, [("u1", moment(1)), ("u2", moment(2))])
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        config, database = configured(downstream.url), Database(engine)
        for gate in (Gate(source="trivore", entity_type="USER", entity_id="u1"), Gate(route="everything")):
            number = commands.ask(database, "pause", gate, who="kim", why="odd")
            execution.work_on(work_of(database, policies(config), config=config), number)
            Relay(database, prepare(config), grace_seconds=20).run(drain=True)
            assert open_states(engine) == {"ready": 1}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the relay post failed alerts again after 200 ms."""
    monkeypatch.setattr(alerts, "POST_AGAIN_AFTER", timedelta(milliseconds=200))


@pytest.mark.usefixtures("impatient")
def test_slack_gets_a_message_and_what_it_did_not_take_is_posted_again(
    database_url: str, engine: Engine, tmp_path: Path, chat: Chat
) -> None:
    fill(database_url, [("u1", moment(1))])
    chat.status = 500
    with (
        serving(tmp_path / "arrivals.jsonl", Unwell(401)) as downstream,
        running(engine, downstream, concurrency=2, destination=BREAKER, more=chat.config("slack")),
    ):
        until(lambda: len(chat.posts) >= 2, "it is posted again")
        chat.status = 200
        until(lambda: rows(engine, "SELECT 1 FROM alert WHERE sent_at IS NOT NULL"), "it is noted as sent")
        for _ in range(2):  # another may have been under way when it was noted
            posted, calls = len(chat.posts), len(downstream.arrivals)
            until(lambda: len(downstream.arrivals) > calls, "the relay goes on")
        assert len(chat.posts) == posted
    assert str(chat.posts[0]["text"]).startswith(":red_circle: destination audit is not called for now: forward:")


def test_an_alert_is_one_line_in_the_log_that_does_not_show_where_it_is_posted(
    database_url: str, engine: Engine, tmp_path: Path, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database_url, [("u1", moment(1))])
    chat.status = 500
    with (
        caplog.at_level(logging.WARNING),
        serving(tmp_path / "arrivals.jsonl", Unwell(401)) as downstream,
        running(engine, downstream, concurrency=2, destination=BREAKER, more=chat.config()),
    ):
        until(lambda: "not posted" in caplog.text, "that it was not taken is told")
        until(lambda: len(downstream.arrivals) >= 3, "the breaker opens again and again")
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line for line in told if line.startswith("alert ")] == [
        "alert breaker_open firing: destination audit is not called for now: forward: answered 401 Unauthorized"
    ]
    assert "s3cr3t" not in caplog.text
    assert "/services" not in caplog.text
