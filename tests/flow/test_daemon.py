"""The daemon itself, in a thread: what its loop does about slow services and an unwell database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from inbox.db import engine as engines
from inbox.db.dialect import as_json
from relay.daemon.generation import PreparedConfig
from relay.daemon.loop import Relay
from relay.delivery.outcome import Delivered, Delivery, Outcome
from relay.destinations import Context
from relay.observe import Observer
from relay.store.database import Database
from tests.helpers.daemon import configured, kinds, running
from tests.helpers.downstream import Held, serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import fill
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.outage import disconnect, down
from tests.helpers.waiting import until
from tests.helpers.webhooks import moment


def test_what_arrives_while_it_runs_is_delivered_and_what_fails_is_tried_again(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl", lambda _, attempt: 503 if attempt == 1 else 200) as downstream:
        with running(engine, downstream):
            seqs = fill(database_url, [("u1", moment(n)) for n in range(3)])
            until(lambda: kinds(engine).count("delivered") == 3, "all three are delivered")
        calls = [(line["seq"], line["attempt"]) for line in downstream.arrivals.lines()]

    assert calls == [(seq, attempt) for seq in seqs for attempt in (1, 2)]
    assert kinds(engine) == ["attempt_failed", "delivered"] * 3


class Exiting:
    """A deliverer whose code ends the thread, or means to."""

    def __call__(self, delivery: Delivery, context: Context) -> Outcome:
        """The first attempt fails."""
        del context
        if delivery.attempt == 1:
            sys.exit("enough")
        return Delivered((), "forwarded")


def test_a_destination_that_would_end_its_thread_only_fails(database_url: str, engine: Engine, tmp_path: Path) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        with running(engine, downstream, concurrency=1) as relay:
            relay.reload(PreparedConfig(configured(downstream.url, concurrency=1), {"everything": Exiting()}))
            fill(database_url, [("u1", moment(0))])
            until(lambda: kinds(engine) == ["attempt_failed", "delivered"], "its thread goes on")
        assert facts(engine)[0]["detail"]["error_class"] == "crashed"


def test_what_a_process_may_have_died_of_is_delivered_one_at_a_time_beside_all_else(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(4)])
    with engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET crashes = 2 WHERE seq <= :last"), {"last": seqs[1]})
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, running(engine, downstream):
        until(lambda: len(held.seqs) == 3, "one of them has begun, and both others")
        fill(database_url, [("u9", moment(9))])
        until(lambda: len(held.seqs) == 4, "what came afterwards has begun, too")
        assert len(set(held.seqs) & set(seqs[:2])) == 1
        held.go.set()
        until(lambda: not open_states(engine), "all are delivered")
    assert sorted(held.seqs) == [*seqs, seqs[-1] + 1]


def test_a_database_that_goes_away_is_waited_for_and_the_log_says_why(
    database_url: str, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream) as relay:
        fill(database_url, [("u1", moment(0))])
        until(lambda: kinds(engine) == ["delivered"], "the relay is at work")
        with down(database_url):
            until(lambda: relay._observer.counts["database_trouble"], "the relay has noticed")
        fill(database_url, [("u1", moment(1))])
        until(lambda: kinds(engine) == ["delivered"] * 2, "the relay goes on")
    why = [line.rpartition("trying again: ")[2] for line in caplog.messages if "database trouble" in line]
    assert any(
        "terminating connection" in each or "not currently accepting" in each or "locked" in each for each in why
    )


@ON_POSTGRES
def test_broken_connections_cost_no_delivery_and_no_second_call(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    seqs = fill(database_url, [(f"u{n % 20}", moment(n)) for n in range(200)])
    with serving(tmp_path / "arrivals.jsonl", seconds=0.01) as downstream:
        with running(engine, downstream):
            for part in (40, 80, 120):
                until(lambda: len(downstream.arrivals) >= part, "the drain goes on")
                disconnect(database_url)
            watching = engines.connect(database_url, application="tests")
            until(lambda: not open_states(watching), "everything is delivered")
        calls = [line["seq"] for line in downstream.arrivals.lines()]
    assert kinds(watching).count("delivered") == 200
    assert sorted(calls) == sorted(seqs)
    watching.dispose()


def test_a_start_is_one_commit_which_has_the_routes(engine: Engine) -> None:
    """On a slow disk, each commit delays what a service manager waits for."""
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    at_start: list[tuple[int, list[str]]] = []

    class Watching(Observer):
        def tell(self, event: str, level: int | None = None, **values: Any) -> None:  # noqa: ANN401  # as there
            super().tell(event, level, **values)
            if event != "started":
                return
            made, node = len(commits), values["node"]
            with engine.connect() as connection:
                known = connection.scalar(text("SELECT routes FROM relay_node WHERE id = :node"), {"node": node})
            at_start.append((made, [*as_json(known)]))

    prepared = PreparedConfig(configured("http://127.0.0.1:9/"), {"everything": Exiting()})
    relay = Relay(Database(engine), prepared, grace_seconds=0, observer=Watching())
    relay.run(drain=True)
    assert at_start == [(1, ["everything"])]
