"""Findings on a Postgres server of these tests' own, which may be configured and restarted, and holds nobody up."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from inbox.db import engine as engines
from inbox.db import migrate
from inbox.db.roles import script
from inbox.doctor import server
from tests.doctor.examining import changing, environment_of, examined, found, installation, run_sql, told
from tests.helpers.killable_postgres import KillablePostgres
from tests.helpers.outage import connect_postgres
from tests.helpers.processes import invoke
from tests.helpers.room import ROOM

HOSTILE = "\x1b]0;owned\x07[red]'; DROP"


@pytest.fixture(scope="module")
def postgres() -> Iterator[KillablePostgres]:
    """A server that may prepare transactions."""
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-doctor-", dir=ROOM))
    folder.chmod(0o755)  # its user is another
    made = KillablePostgres(folder)
    try:
        made.start()
        made.run("ALTER SYSTEM SET max_prepared_transactions = 3")
        made.stop()
        made.start()
        made.create_database("inbox")
        engine = engines.connect(made.url("inbox"), application="tests")
        migrate.upgrade(engine)
        engine.dispose()
        yield made
    finally:
        made.clean_up()
        folder.rmdir()


@pytest.fixture
def url(postgres: KillablePostgres) -> str:
    return postgres.url("inbox")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    with changing(url) as made:
        yield made


def test_it_has_no_finding_by_itself_and_says_what_durability_rests_on(tmp_path: Path, url: str) -> None:
    place = installation(tmp_path, url)
    for name in ("database", "versions", "clock", "durability", "sequences", "transactions", "bloat", "slots", "xids"):
        assert found(place, name) == [], name
    assert told(place, "durability")["durability"].what == (
        "synchronous_commit = on, fsync = on, full_page_writes = on; synchronous standbys: none, so it rests on this server"
        " alone"
    )
    space = told(place, "disk")["disk_space"].what
    assert "GB are free" in space  # the server runs here, so its disk can be looked at


def test_an_open_transaction_is_found_with_its_session_and_no_value(
    tmp_path: Path, url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LONG_SECONDS", 0)
    with engine.begin() as other:
        other.execute(text("SELECT set_config('application_name', :name, false)"), {"name": HOSTILE})
        pid = other.execute(text("SELECT pg_backend_pid() /* of a person: 'private' */")).scalar_one()
        (finding,) = examined(installation(tmp_path, url), "transactions").findings
        ended = invoke("inbox", "doctor", "--only", "transactions", **environment_of(installation(tmp_path, url)))
    assert (finding.name, finding.subject) == ("long_transaction", f"pid {pid}")
    assert finding.mend == f"SELECT pg_terminate_backend({pid});"
    assert "in its transaction for" in finding.what
    assert "private" not in finding.what
    assert (ended.status, "\x1b" in ended.stdout, "[red]" in ended.stdout) == (1, False, True)


def test_a_prepared_transaction_is_found_and_its_statement_ends_it(
    tmp_path: Path, url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PREPARED_SECONDS", 0)
    with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False)) as one:
        one.execute("INSERT INTO gate (kind, name) VALUES ('route', 'prepared')")
        one.execute("PREPARE TRANSACTION 'it''s mine'")
    (finding,) = examined(installation(tmp_path, url), "transactions").findings
    assert (finding.name, finding.subject) == ("prepared_transaction", "it's mine")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(finding.mend.partition(";")[0])
    assert found(installation(tmp_path, url), "transactions") == []


def test_a_slot_that_holds_the_log_is_found_and_its_statement_drops_it(
    tmp_path: Path, url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SLOT_BYTES", 2_000_000)
    run_sql(engine, "CHECKPOINT", "SELECT pg_create_physical_replication_slot('gone', true)")
    assert found(installation(tmp_path, url), "slots") == []
    run_sql(
        engine,
        "CREATE TABLE filling AS SELECT repeat('x', 100) AS x FROM generate_series(1, 20000)",
        "DROP TABLE filling",
    )
    (finding,) = examined(installation(tmp_path, url), "slots").findings
    assert (finding.name, finding.subject) == ("slot_holds_wal", "gone")
    assert "inactive" in finding.what
    run_sql(engine, finding.mend.partition(";")[0])
    assert found(installation(tmp_path, url), "slots") == []


def test_dead_rows_and_autovacuum_that_is_off_are_found_and_mended(tmp_path: Path, url: str, engine: Engine) -> None:
    run_sql(
        engine,
        "ALTER TABLE lane SET (autovacuum_enabled = false)",
        "INSERT INTO lane (route, lane, occurred_at, seq) SELECT 'r', n::text, now(), n FROM generate_series(1, 30000) n",
        "DELETE FROM lane; SELECT pg_stat_force_next_flush()",
    )
    place = installation(tmp_path, url)
    assert found(place, "bloat") == [("autovacuum_off", "lane"), ("dead_rows", "lane")]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for finding in told(place, "bloat").values():
            connection.exec_driver_sql(finding.mend)
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    assert found(installation(tmp_path, url), "bloat") == []


def test_autovacuum_that_is_off_for_the_server_is_found(tmp_path: Path, url: str, postgres: KillablePostgres) -> None:
    postgres.run("ALTER SYSTEM SET autovacuum = off")
    postgres.run("SELECT pg_reload_conf()")
    try:
        assert found(installation(tmp_path, url), "bloat") == [("autovacuum_off", "autovacuum")]
    finally:
        postgres.run("ALTER SYSTEM RESET autovacuum")
        postgres.run("SELECT pg_reload_conf()")


def test_a_small_table_in_a_large_file_is_found(
    tmp_path: Path, url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_OVERSIZED_BYTES", 500_000)
    monkeypatch.setattr(server, "_BYTES_OF_A_ROW", 0)
    insert = "INSERT INTO relay_node (id, host, pid, version, started_at, heartbeat_at, stopped_at)"
    run_sql(
        engine,
        f"{insert} SELECT n::text, repeat('h', 100), n, '1', now(), now(), now() FROM generate_series(1, 5000) n",
    )
    assert ("table_oversized", "relay_node") in found(installation(tmp_path, url), "bloat")
    run_sql(engine, "TRUNCATE relay_node")


def test_old_transaction_ids_are_found(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_XID_AGE", -1)
    assert found(installation(tmp_path, url), "xids") == [("xid_age", "inbox"), ("xid_age", "inbox")]


def test_connections_near_a_limit_are_found(
    tmp_path: Path, url: str, engine: Engine, postgres: KillablePostgres
) -> None:
    postgres.run("ALTER DATABASE inbox CONNECTION LIMIT 2")
    try:
        with engine.connect() as held:
            held.execute(text("SELECT 1"))
            assert found(installation(tmp_path, url), "connections") == [("connections_near_limit", "database inbox")]
    finally:
        postgres.run("ALTER DATABASE inbox CONNECTION LIMIT -1")


def test_settings_of_the_servers_owner_and_a_missing_standby_are_found(
    tmp_path: Path, url: str, postgres: KillablePostgres
) -> None:
    for setting in ("full_page_writes = off", "synchronous_standby_names = 'standby'"):
        postgres.run(f"ALTER SYSTEM SET {setting}")
    postgres.run("SELECT pg_reload_conf()")
    try:
        place = installation(tmp_path, url)
        assert found(place, "durability") == [
            ("setting_doubtful", "full_page_writes"),
            ("standby_missing", "synchronous_standby_names"),
        ]
        doubtful = told(place, "durability")["setting_doubtful"]
        assert doubtful.mend == "ALTER SYSTEM RESET full_page_writes; SELECT pg_reload_conf();"
    finally:
        postgres.run("ALTER SYSTEM RESET ALL")
        postgres.run("ALTER SYSTEM SET max_prepared_transactions = 3")
        postgres.run("SELECT pg_reload_conf()")


def test_a_pinned_setting_that_something_changes_is_found(
    tmp_path: Path, url: str, postgres: KillablePostgres, engine: Engine
) -> None:
    """Here a trigger at log-in; in practice a pooler that drops what both programs ask for."""
    run_sql(
        engine,
        "CREATE FUNCTION at_login() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false); END $$",
        "CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION at_login()",
    )
    try:
        assert found(installation(tmp_path, url), "durability") == [("setting_lost", "synchronous_commit")]
    finally:
        run_sql(engine, "DROP EVENT TRIGGER at_login", "DROP FUNCTION at_login()")
    assert postgres.runs


def test_a_sequence_behind_its_table_is_found_and_its_statement_mends_it(
    tmp_path: Path, url: str, engine: Engine
) -> None:
    run_sql(
        engine, "INSERT INTO alert (id, at, kind, subject, firing, detail) VALUES (70, now(), 'k', 's', false, '{}')"
    )
    place = installation(tmp_path, url)
    assert found(place, "sequences") == [("sequence_behind", "public.alert_id_seq")]
    run_sql(engine, told(place, "sequences")["sequence_behind"].mend)
    assert found(installation(tmp_path, url), "sequences") == []


def test_stored_times_in_the_future_are_found(tmp_path: Path, url: str, engine: Engine) -> None:
    insert = "INSERT INTO delivery_log (at, seq, route, kind, attempt, detail)"
    run_sql(engine, f"{insert} VALUES (now() + interval '1 hour', 1, 'r', 'delivered', 1, '{{}}')")
    assert found(installation(tmp_path, url), "clock") == [("clock_went_back", "delivery_log.at")]


def test_payloads_in_the_default_leaf_are_found(tmp_path: Path, url: str, engine: Engine) -> None:
    assert found(installation(tmp_path, url), "leaves") == []
    run_sql(engine, "INSERT INTO inbox_payload (seq, headers, body) VALUES (90000000, '{}', '')")
    assert found(installation(tmp_path, url), "leaves") == [("payloads_in_default", "inbox_payload_default")]


def test_a_table_without_rights_for_the_roles_is_found(tmp_path: Path, url: str, engine: Engine) -> None:
    assert found(installation(tmp_path, url), "rights") == []  # where there are no roles
    place = installation(tmp_path, url)
    with contextlib.closing(connect_postgres(url)) as admin:
        admin.execute(script().encode())
    assert found(place, "rights") == []
    run_sql(engine, "REVOKE SELECT ON backlog FROM inbox_relay")  # as one that a migration has made
    assert found(place, "rights") == [("rights_lacking", "backlog")]
    with contextlib.closing(connect_postgres(url)) as admin:
        admin.execute(script().encode())
    assert found(place, "rights") == []
