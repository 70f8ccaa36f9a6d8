"""Both sides through a real PgBouncer in transaction mode, before a server that has every setting otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.db import engine as engines
from inbox.db import guarantees, migrate
from inbox.db.engine import PINNED
from inbox.errors import UnfitDatabase
from relay.store.database import Database
from tests.helpers import checkers
from tests.helpers.agreement import facts_agree
from tests.helpers.databases import HOSTILE, connect_postgres, read_pinned, set_otherwise
from tests.helpers.processes import site
from tests.helpers.proxies import run_pooler
from tests.helpers.tables import facts, open_states, read_inbox
from tests.helpers.traffic import Sender, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.long

EVENTS = 400
RELAYS = 3
IN_TRANSACTIONS = "?pooler=transaction"


@pytest.fixture
def hostile(postgres_database_url: str) -> str:
    """A database whose owner has set everything otherwise."""
    set_otherwise(postgres_database_url)
    return postgres_database_url


@pytest.fixture
def through(hostile: str) -> Iterator[str]:
    """The database's URL through the pooler, with one connection to the server: what a client leaves, the next one finds."""
    with run_pooler(hostile, {"default_pool_size": "1"}) as url:
        yield url


@pytest.fixture
def relays(through: str) -> Iterator[Engine]:
    made = engines.connect(through + IN_TRANSACTIONS, application="tests")
    yield made
    made.dispose()


def of_the_receiver(url: str, look: Callable[..., object]) -> object:
    """Return the result of `look` in one transaction of a receiver's connection."""

    def in_one(connection: Connection) -> object:
        with engines.one_transaction(connection):
            return look(connection)

    async def _look() -> object:
        made = engines.connect_async(url, application="tests")
        async with made.connect() as connection:
            found = await connection.run_sync(in_one)
        await made.dispose()
        return found

    return asyncio.run(_look())


def test_webhooks_become_deliveries_through_it_with_several_relays(
    hostile: str, postgres_engine: Engine, tmp_path: Path
) -> None:
    engine = postgres_engine
    with (
        run_pooler(hostile) as url,
        serving(tmp_path / "arrivals.jsonl", seconds=0.01) as downstream,
        site(tmp_path, config_text(url + IN_TRANSACTIONS, downstream.url)) as place,
    ):
        _, port = place.receiver(workers=2)
        relays = place.relay("--processes", str(RELAYS))
        with Sender(tmp_path / "sends.jsonl", port, events(EVENTS), connections=8) as sender:
            until(lambda: sender.is_done, "all is acknowledged")
        until(lambda: len(downstream.arrivals) >= EVENTS and not open_states(engine), "all is delivered")
        verified = place.invoke("relay", "verify")
        assert verified.status == 0, verified.stderr
        assert relays.runs
        arrivals, sends, logs = downstream.arrivals.lines(), sender.sends.lines(), place.logs()

    assert sorted(line["seq"] for line in arrivals) == [line["seq"] for line in read_inbox(engine)]
    assert checkers.find_unstored(sends, read_inbox(engine)) == []
    assert checkers.find_out_of_order(arrivals, facts(engine)) == []
    assert checkers.find_complaints(logs, ("Traceback", "CRITICAL", "ERROR")) == []
    assert len({fact["relay_node"] for fact in facts(engine)}) > 1
    facts_agree(engine)


def test_each_transaction_has_the_pinned_settings_and_leaves_none_behind(through: str, relays: Engine) -> None:
    for _ in range(2):
        with relays.begin() as connection:
            assert read_pinned(connection) == PINNED
        assert of_the_receiver(through + IN_TRANSACTIONS, read_pinned) == PINNED
    with contextlib.closing(connect_postgres(through)) as stranger:
        for name, value in HOSTILE.items():
            assert stranger.execute(f"SHOW {name}".encode()).fetchone() == (value,)
    guarantees.require(relays)


def test_the_doctor_examines_everything_writes_nothing_and_reads_a_snapshot(
    through: str, relays: Engine, tmp_path: Path
) -> None:
    with site(tmp_path, config_text(through + IN_TRANSACTIONS)) as place:
        document = json.loads(place.invoke("inbox", "doctor", "--json").stdout)
    assert {each["needs"] for each in document["examinations"]} == {None}
    looking = engines.connect_read_only(through + IN_TRANSACTIONS, application="inbox-doctor")
    with pytest.raises(DBAPIError, match="read-only"), looking.begin() as connection:
        connection.execute(text("DELETE FROM gate"))
    looking.dispose()
    with Database(relays).snapshot() as transaction:
        level = text("SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only') AS s")
        assert [row.s for row in transaction.execute(level)] == ["repeatable readon"]
        streamed = transaction.stream(text("SELECT n FROM generate_series(1, 2500) n"), 100)
        assert [row.n for row in streamed] == list(range(1, 2501))


def test_it_migrates_and_makes_an_index_beside_those_who_write(hostile: str) -> None:
    """With three connections: the migrator holds one beside the migrations', and looks through another who is in the way."""
    with run_pooler(hostile, {"default_pool_size": "3"}) as url:
        made = engines.connect(url + IN_TRANSACTIONS, application="tests")
        assert migrate.upgrade(made).after == migrate.head()
        with made.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CREATE INDEX CONCURRENTLY ix_of_a_test ON inbox (event_id)"))
        with made.begin() as connection:
            assert guarantees.differences(connection) == []
        made.dispose()


def test_without_the_word_in_the_url_every_program_says_what_to_add(through: str, tmp_path: Path) -> None:
    with site(tmp_path, config_text(through)) as place:
        listing = place.invoke("inbox", "list")
        relay, receiver = place.relay(), place.start_refused_receiver()
        assert [listing.status, relay.ends(), receiver.ends()] == [2, 2, 2]
        for output in (listing.stderr, relay.output, receiver.output):
            assert "add pooler=transaction to the url" in " ".join(output.split())


def test_a_pooler_that_drops_what_is_set_is_refused_with_who_has_set_the_other_value(hostile: str) -> None:
    with run_pooler(hostile, {"ignore_startup_parameters": ", ".join(["options", *PINNED])}) as url:
        made = engines.connect(url, application="tests")
        with pytest.raises(UnfitDatabase) as refused:
            guarantees.require(made)
        made.dispose()
        lines = str(refused.value).splitlines()
        assert of_the_receiver(url, guarantees.differences) == lines
    told = [line.partition(", not ")[0] for line in lines]
    assert "the database has transaction_isolation = repeatable read (set by: database)" in told
    assert "the database has synchronous_commit = off (set by: database)" in told
    assert all("add pooler=transaction to [database] url" in line for line in lines)
