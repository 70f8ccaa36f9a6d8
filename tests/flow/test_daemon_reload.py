"""The daemon itself, in a thread: another configuration while calls run."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
from sqlalchemy import Engine

from inbox.loader.load import parse_config
from relay.daemon.generation import prepare
from tests.helpers.daemon import configured, kinds, running
from tests.helpers.downstream import Held, serving
from tests.helpers.evidence import open_states
from tests.helpers.filling import fill
from tests.helpers.reading import count as count_rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment


def pool_threads() -> int:
    """Count the threads that make calls to the destination of the tests."""
    return sum(thread.name.startswith("audit-") for thread in threading.enumerate())


def test_a_new_configuration_takes_what_nobody_has_begun_and_what_runs_ends_by_the_old(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(3)])
    held = Held()
    with serving(tmp_path / "old.jsonl", held) as old, serving(tmp_path / "new.jsonl") as new:
        with running(engine, old, concurrency=1) as relay:
            until(lambda: count_rows(engine, "open_delivery WHERE state = 'in_flight'") == 3, "all are claimed")
            until(lambda: held.seqs, "one has begun")
            changed = configured(new.url, concurrency=2)
            relay.reload(prepare(changed))
            until(lambda: len(new.arrivals) == 2, "the others go to the new address")
            assert pool_threads() == 1 + 2
            held.go.set()
            until(lambda: not open_states(engine), "all are delivered")
            until(lambda: pool_threads() == 2, "the old pool is closed")
            seqs += fill(database_url, [("u9", moment(9))])
            until(lambda: not open_states(engine), "the new pool still works")
        calls = [sorted(line["seq"] for line in service.arrivals.lines()) for service in (old, new)]

    assert calls == [held.seqs, [seq for seq in seqs if seq not in held.seqs]]
    assert {line["attempt"] for line in new.arrivals.lines()} == {1}
    assert kinds(engine) == ["delivered"] * 4


def test_what_runs_on_a_route_that_a_new_configuration_has_no_more_is_recorded(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(3)])
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, running(engine, downstream, concurrency=1) as relay:
        until(lambda: held.seqs, "one has begun")
        other = config_text("sqlite:///unused.db", downstream.url).replace("routes.everything", "routes.another")
        changed = parse_config(other)
        relay.reload(prepare(changed))
        until(lambda: open_states(engine) == {"ready": 2, "in_flight": 1}, "the others are given back")
        held.go.set()
        until(lambda: kinds(engine) == ["delivered"], "the one is recorded")
    assert held.seqs == seqs[:1]
    assert open_states(engine) == {"ready": 2}


def test_when_ordering_becomes_latest_a_lane_is_folded_when_its_head_has_ended(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    held = Held()
    seqs = fill(database_url, [("u1", moment(n)) for n in range(4)])
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, running(engine, downstream) as relay:
        until(lambda: held.seqs, "the first has begun")
        config = configured(downstream.url)
        latest = {name: msgspec.structs.replace(route, ordering="latest") for name, route in config.routes.items()}
        config = msgspec.structs.replace(config, routes=latest)
        relay.reload(prepare(config))
        until(lambda: relay._generations.active.work.config is config, "it is reloaded")
        held.go.set()
        until(lambda: not open_states(engine), "all have ended")
    assert held.seqs == [seqs[0], seqs[-1]]
    assert kinds(engine).count("superseded") == 2
