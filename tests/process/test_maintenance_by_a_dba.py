"""A DBA works on the tables under load: the receiver answers or says 503 and comes back, nothing is lost, and order holds."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from inbox.db import engine as engines
from tests.helpers import checkers
from tests.helpers.agreement import facts_agree
from tests.helpers.databases import connect_postgres, granted
from tests.helpers.processes import Site, site
from tests.helpers.tables import facts, open_states, stored
from tests.helpers.traffic import Downstream, Sender, endless, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

pytestmark = pytest.mark.long

SOME = 40
PATIENCE = 90
STATEMENTS = (
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_of_a_dba ON inbox (event_type)",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_of_a_dba_too ON open_delivery (attempt)",
    "DROP INDEX CONCURRENTLY ix_of_a_dba_too",
    "ANALYZE",
    "VACUUM (ANALYZE) open_delivery",
    "VACUUM FULL gate",
    "VACUUM FULL relay_node",
    "VACUUM FULL open_delivery",
    "VACUUM FULL lane",
    "REINDEX TABLE CONCURRENTLY open_delivery",
    "REINDEX TABLE CONCURRENTLY inbox",
    "REINDEX TABLE inbox",
    "REINDEX TABLE delivery_log",
    "CLUSTER lane USING pk_lane",
)


@pytest.fixture(scope="module")
def under_load(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A receiver, a relay and a sender without end, which the tests of this module share."""
    folder = tmp_path_factory.mktemp("load")
    engine = engines.connect(module_database_url, application="tests")
    with (
        serving(folder / "arrivals.jsonl") as downstream,
        site(folder, config_text(module_database_url, downstream.url, schedule=("200ms", "1s"))) as place,
    ):
        _, port = place.receiver(workers=1)
        place.relay()
        sender = Sender(folder / "sends.jsonl", port, endless(), per_second=100)
        load = Load(place, sender, downstream, engine)
        try:
            load.goes_on()
            yield load
        finally:
            sender.stop()
            engine.dispose()


class Load:
    """Both sides at work."""

    def __init__(self, place: Site, sender: Sender, downstream: Downstream, engine: Engine) -> None:
        self.place, self.sender, self.downstream, self.engine = place, sender, downstream, engine

    def goes_on(self) -> None:
        """Wait until so many more are acknowledged and delivered."""
        acknowledged, arrived = self.sender.acknowledged() + SOME, len(self.downstream.arrivals) + SOME
        until(
            lambda: self.sender.acknowledged() >= acknowledged and len(self.downstream.arrivals) >= arrived,
            "webhooks are taken in and delivered",
            within=PATIENCE,
        )


def test_whatever_he_runs_both_sides_go_on(under_load: Load, module_database_url: str) -> None:
    with contextlib.closing(connect_postgres(module_database_url)) as dba:
        for statement in STATEMENTS:
            for attempt in range(9):
                try:
                    dba.execute(statement.encode())
                    break
                except (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable):
                    assert attempt < 8, statement
            under_load.goes_on()


def test_a_report_that_runs_into_its_reader_s_timeout_is_ended_and_harms_nobody(
    under_load: Load, module_database_url: str
) -> None:
    """The timeout is the role's, only shorter."""
    with granted(module_database_url, f"d{os.getpid()}") as roles:
        with contextlib.closing(connect_postgres(module_database_url)) as admin:
            admin.execute(f"ALTER ROLE {roles.login('reader')} SET statement_timeout = '5min'".encode())
            admin.execute(
                f"ALTER ROLE {roles.login('reader')} IN DATABASE {make_url(module_database_url).database}"
                " SET statement_timeout = '3s'".encode()
            )
        ended: list[type[BaseException]] = []

        def report() -> None:
            with roles.connected("reader") as reader:
                try:
                    reader.execute("SELECT count(*) FROM inbox a, inbox b, inbox c, pg_sleep(60)")
                except psycopg.Error as error:
                    ended.append(type(error))

        thread = threading.Thread(target=report)
        thread.start()
        under_load.goes_on()
        thread.join(PATIENCE)
        assert ended == [psycopg.errors.QueryCanceled]
    under_load.goes_on()


def test_a_table_that_he_has_locked_is_answered_503_until_he_lets_go(
    under_load: Load, module_database_url: str
) -> None:
    with contextlib.closing(connect_postgres(module_database_url)) as dba:
        dba.execute(b"BEGIN")
        dba.execute(b"LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
        failed = len([line for line in under_load.sender.sends.lines() if line.get("status") == 503])
        until(
            lambda: len([line for line in under_load.sender.sends.lines() if line.get("status") == 503]) > failed,
            "the sender hears 503",
            within=PATIENCE,
        )
        dba.execute(b"ROLLBACK")
    under_load.goes_on()


def test_after_all_of_that_nothing_is_lost_and_everything_came_in_order(under_load: Load) -> None:
    load = under_load
    load.sender.enough()
    until(lambda: load.sender.is_done, "the last is acknowledged", within=PATIENCE)
    until(lambda: not open_states(load.engine), "all is delivered", within=PATIENCE)
    arrivals, sends = load.downstream.arrivals.lines(), load.sender.sends.lines()
    assert checkers.unstored(sends, stored(load.engine)) == []
    assert checkers.out_of_order(arrivals, facts(load.engine)) == []
    assert checkers.complaints(load.place.logs(), ("Traceback",)) == []
    facts_agree(load.engine)
    verified = load.place.invoke("relay", "verify")
    assert verified.status == 0, verified.stdout + verified.stderr
