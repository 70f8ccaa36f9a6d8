"""A receiver's figures in `throughput_minute`: how its requests ended, whatever the database does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Engine, text
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, down
from tests.helpers.tables import rows

from inbox.config.model import Config
from inbox.db.throughput import SOURCE, Tally
from inbox.receiver.reporting import ThroughputFlusher
from tests.helpers.receiver import a_link, receiving
from tests.helpers.waiting import Stopwatch, stand_still, until
from tests.helpers.webhooks import body

LONG = 3600.0
FIGURES = 'SELECT name, outcome, sum("count") AS n, sum(bytes) AS size FROM throughput_minute GROUP BY name, outcome'


def figures(engine: Engine) -> dict[tuple[str, str], tuple[int, int]]:
    found = rows(engine, f"{FIGURES} ORDER BY name, outcome")
    return {(row["name"], row["outcome"]): (row["n"], row["size"]) for row in found}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes its time to write the last figures."""
    monkeypatch.setattr("inbox.receiver.reporting.LAST_FLUSH_SECONDS", 60.0)


@ON_BOTH
async def test_the_end_of_every_request_is_counted_by_its_source(config: Config, engine: Engine) -> None:
    first, second = body("u1"), body("u2")
    async with receiving(config) as receiver:
        for payload in (first, second, first):
            assert (await receiver.post(payload)).status_code == 200
        assert (await receiver.post(b"{}")).status_code == 422
        assert (await receiver.post(headers={"X-Webhook-Token": "wrong"})).status_code == 401
        for name in ("nobody", "no-one"):
            assert (await receiver.post(path=f"/webhooks/{name}")).status_code == 401
        assert figures(engine) == {}, "nothing is written beside a request"
    assert figures(engine) == {
        ("(unknown)", "rejected"): (2, 0),
        ("trivore", "duplicate"): (1, len(first)),
        ("trivore", "rejected"): (2, 0),
        ("trivore", "stored"): (2, len(first) + len(second)),
    }


async def test_an_event_that_could_not_be_stored_is_counted_when_the_database_is_back(
    config: Config, engine: Engine, database_url: str
) -> None:
    async with receiving(config) as receiver:
        assert (await receiver.post(body("u1"))).status_code == 200
        with down(database_url):
            assert (await receiver.post(body("u2"))).status_code == 503
    assert {key: n for key, (n, _) in figures(engine).items()} == {
        ("trivore", "stored"): 1,
        ("trivore", "unavailable"): 1,
    }


@pytest.fixture
async def flusher(database_url: str) -> AsyncIterator[tuple[ThroughputFlusher, Tally]]:
    tally = Tally()
    made = ThroughputFlusher(a_link(database_url), tally, every=LONG)
    yield made, tally
    await made.close()


async def test_a_flush_that_fails_is_logged_once_and_written_later(
    flusher: tuple[ThroughputFlusher, Tally], engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    made, tally = flusher
    tally.add(SOURCE, "trivore", "stored")
    with down(database_url):
        for _ in range(2):
            await made.flush(within=0.5)
    await made.flush()
    assert figures(engine) == {("trivore", "stored"): (1, 0)}
    (line,) = (record.getMessage() for record in caplog.records if record.name == "inbox.receiver.reporting")
    assert line.startswith("figures for throughput_minute are not written yet: ")


@ON_POSTGRES
async def test_a_person_who_locks_the_figures_delays_no_request(
    config: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.receiver.app.FLUSH_EVERY_SECONDS", 0.01)
    async with receiving(config) as receiver:
        with engine.begin() as person:
            stand_still(person)
            person.execute(text("LOCK TABLE throughput_minute IN ACCESS EXCLUSIVE MODE"))
            waiting = (
                "SELECT count(*) AS n FROM pg_locks WHERE NOT granted AND relation = 'throughput_minute'::regclass"
            )
            assert (await receiver.post(body("u0"))).status_code == 200
            await asyncio.to_thread(until, lambda: rows(engine, waiting)[0]["n"], "its flush waits")
            with Stopwatch() as watch:
                for n in range(1, 20):
                    assert (await receiver.post(body(f"u{n}"))).status_code == 200
            assert watch.seconds < 1.5
            await asyncio.to_thread(until, lambda: rows(engine, waiting)[0]["n"], "its flush still waits, or again")
    assert figures(engine)["trivore", "stored"][0] == 20
