"""Findings in the configuration, in files, on the disk and in versions: most of them without a database."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Engine, make_url

from inbox.clock import SystemClock
from inbox.db.dialect import Sql
from inbox.doctor import database, disk, server
from inbox.doctor.disk import Space
from inbox.events.timestamps import time_text
from tests.doctor.examining import changing, examined, found, installation, run_sql, told
from tests.helpers.room import ROOM

NOW = SystemClock().now()
LATER, SOON, BEFORE = (NOW + timedelta(days=days) for days in (90, 9, -9))


def toml(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# --- versions


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 38, 0), True), ((3, 44, 5), True), ((3, 44, 6), False), ((3, 45, 0), True), ((3, 46, 1), True),
        ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 53, 0), False),
    ],
)  # fmt: skip
def test_versions_of_sqlite_with_the_wal_reset_bug_are_known(version: tuple[int, ...], has_bug: bool) -> None:
    names = [each.name for each in database.of_sqlite(version)]
    assert names == (["sqlite_wal_reset_bug"] if has_bug else [])


def test_the_wal_reset_bug_is_information_that_says_how_it_is_avoided() -> None:
    (finding,) = database.of_sqlite((3, 46, 1))
    assert finding.severity == "information"
    assert "hold the write lock" in finding.why
    assert [each.name for each in database.of_sqlite((3, 52, 0))] == ["sqlite_withdrawn"]


def test_versions_of_postgres_without_updates_or_with_a_known_bug_are_found() -> None:
    def names(number: int, today: date = date(2026, 11, 26)) -> list[str]:
        return [each.name for each in database.of_postgres(number, today, "inbox")]

    assert names(130023) == ["server_unsupported"]
    assert names(140003) == ["server_unsupported", "server_known_bug"]
    assert names(140003, date(2026, 11, 12)) == ["server_known_bug"]
    assert names(180001) == names(190000) == []


# --- clocks


def test_a_host_whose_clock_differs_is_found(
    tmp_path: Path, postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead:
        def now(self) -> datetime:
            return SystemClock().now() + timedelta(seconds=60)

    monkeypatch.setattr(database, "SystemClock", Ahead)
    place = installation(tmp_path, postgres_database_url)
    assert found(place, "clock") == [("clock_skew", "clock")]
    assert "s behind this host's" in told(place, "clock")["clock_skew"].what


# --- SQLite


def test_a_file_that_somebody_took_out_of_wal_is_found_and_left_as_it_is(
    tmp_path: Path, sqlite_database_url: str
) -> None:
    path = make_url(sqlite_database_url).database or ""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    connection.close()
    place = installation(tmp_path, sqlite_database_url)
    assert found(place, "durability") == [("journal_mode", "journal_mode")]
    assert found(place, "durability") == [("journal_mode", "journal_mode")]
    connection = sqlite3.connect(path)
    connection.execute(told(place, "durability")["journal_mode"].mend)
    connection.close()
    assert found(place, "durability") == []


def test_free_pages_and_a_large_log_are_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_FREE_BYTES", 100_000)
    monkeypatch.setattr(server, "_LOG_BYTES", 100_000)
    path = make_url(sqlite_database_url).database
    with changing(sqlite_database_url) as engine:  # the last connection that closes copies the log
        run_sql(engine, "CREATE TABLE filling AS SELECT zeroblob(2000000) AS b", "DROP TABLE filling")
        place = installation(tmp_path, sqlite_database_url)
        assert found(place, "bloat") == [("free_pages", path), ("log_large", f"{path}-wal")]


# --- disk


def test_a_disk_that_fills_up_is_found_by_its_space_and_by_the_days_left() -> None:
    def names(free: float, per_day: float | None, whole: float = 1e12) -> list[str]:
        return [each.name for each in disk.judge("/data", 10**9, Space(int(free), int(whole)), per_day)]

    assert names(5e11, None) == names(5e11, 1e9) == ["disk_space"]
    assert names(4e8, None) == names(1e11, 2e10) == ["disk_space", "disk_filling"]
    assert names(1.5e9, None, whole=2e9) == ["disk_space"]
    (space,) = disk.judge("the server", 10**9, None, 1e6)
    assert (
        space.what
        == "the database has 1,000 MB, about 1 MB are added in a day, only the server's host knows its free disk"
    )


def a_million_events_in_an_hour(engine: Engine) -> None:
    sql = Sql(engine.dialect.name)
    on_sqlite = "strftime('%Y-%m-%d %H\\:%M\\:00', 'now', '-1 minutes') || '.000000Z'"
    minute = "date_trunc('minute', now()) - interval '1 minute'" if sql.is_postgres else on_sqlite
    insert = "INSERT INTO throughput_minute (kind, name, outcome, minute, count, bytes)"
    run_sql(engine, f"{insert} VALUES ('source', 'github', 'stored', {minute}, 1000000, 1000000000)")


def test_growth_follows_the_figures_of_the_last_day(tmp_path: Path, database_url: str, engine: Engine) -> None:
    a_million_events_in_an_hour(engine)
    place = installation(tmp_path, database_url)
    assert "about 50,400 MB are added in a day" in told(place, "disk")["disk_space"].what  # 2,100 bytes, in an hour


def test_growth_is_without_what_retention_takes(tmp_path: Path, database_url: str, engine: Engine) -> None:
    a_million_events_in_an_hour(engine)
    run_sql(engine, "INSERT INTO pruning (kind, rows) VALUES ('payloads', 100)")
    place = installation(tmp_path, database_url)
    assert "about 26,400 MB are added in a day" in told(place, "disk")["disk_space"].what  # the rows alone


def test_a_pruner_that_is_behind_fails_or_stands_still_is_found(
    tmp_path: Path, database_url: str, engine: Engine
) -> None:
    insert = "INSERT INTO pruning (kind, behind_seconds, behind_since, error, ran_at) VALUES (:kind, :late, :since, :error, :since)"
    late = time_text(SystemClock().now() - timedelta(days=2))
    run_sql(engine, insert, kind="payloads", late=172_800, since=late, error=None)
    run_sql(engine, insert, kind="rejected", late=0, since=None, error="it is \x1b[31mlocked")
    run_sql(engine, insert, kind="alerts", late=172_800, since=late, error="forever")
    run_sql(engine, "UPDATE pruner SET ran_at = :since", since=late)
    place = installation(tmp_path, database_url, '[retention]\nalerts = "forever"\n')
    assert found(place, "retention") == [
        ("retention_idle", "pruner"),
        ("retention_behind", "payloads"),
        ("retention_failed", "rejected"),
    ]
    findings = told(place, "retention")
    assert "payloads: the oldest expired row is 2.0 d late" in findings["retention_behind"].what
    assert findings["retention_failed"].mend == "inbox prune --kind rejected"


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb /elsewhere xfs rw 0 0\n")
    assert disk.network_type(tmp_path / "data", mounts) == "nfs4"
    assert disk.network_type(Path("/elsewhere"), mounts) is None
    assert disk.network_type(tmp_path, tmp_path / "none") is None


def test_a_sqlite_file_on_a_network_disk_is_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "network_type", lambda _folder: "nfs")
    assert found(installation(tmp_path, sqlite_database_url), "disk")[0][0] == "network_disk"


# --- the configuration


def test_mistakes_are_found_as_inbox_check_finds_them(tmp_path: Path, sqlite_database_url: str) -> None:
    place = installation(tmp_path, sqlite_database_url, "[routes.other]\nsource = 'githb'\ndestination = 'audit'\n")
    assert [name for name, _ in found(place, "configuration")] == ["configuration_mistake"]
    assert "did you mean 'github'" in told(place, "configuration")["configuration_mistake"].what


def test_secrets_in_the_file_or_at_their_end_are_found(tmp_path: Path, sqlite_database_url: str) -> None:
    def source(name: str, secrets: str) -> str:
        return f'[sources.{name}]\npreset = "github"\nsecrets = [{secrets}]\n'

    def dated(variable: str, moment: datetime) -> str:
        return f'{{ value = "env:{variable}", not_after = {toml(moment)} }}'

    more = (
        source("bare", '"hunter2"')
        + source("over", dated("A", BEFORE))
        + source("soon", f"{dated('A', SOON)}, {dated('B', BEFORE)}")
        + source("rotated", f'{dated("A", SOON)}, "env:B"')
        + source("later", dated("A", LATER))
    )
    place = installation(tmp_path, sqlite_database_url, more)
    assert found(place, "secrets") == [
        ("secret_in_file", "sources.bare.secrets[0]"),
        ("secret_expired", "sources.over.secrets"),
        ("secret_expiring", "sources.soon.secrets"),
    ]
    assert told(place, "secrets")["secret_left_over"].subject == "sources.soon.secrets"
    assert "hunter2" not in str(examined(place, "secrets"))


def test_a_password_in_the_database_url_is_found(tmp_path: Path) -> None:
    place = installation(tmp_path, "postgresql+psycopg://relay:hunter2@db.example.com/inbox")
    assert found(place, "secrets") == [("secret_in_file", "database.url")]
    assert "hunter2" not in str(examined(place, "secrets"))


def certificate(path: Path, *ends: datetime, name: str = "client") -> Path:
    """A file with a certificate for each end."""
    key = ec.generate_private_key(ec.SECP256R1())
    whole = b""
    for end in ends:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        signed = builder.not_valid_before(BEFORE - timedelta(days=9)).not_valid_after(end).sign(key, hashes.SHA256())
        whole += signed.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(whole)
    return path


def test_certificates_at_their_end_are_found(tmp_path: Path, sqlite_database_url: str) -> None:
    files = {
        "over": ("cert_file", (BEFORE,)),
        "soon": ("cert_file", (SOON, LATER)),  # the first is the client's own
        "later": ("cert_file", (LATER, BEFORE)),
        "authorities": ("ca_file", (BEFORE, LATER)),
        "old-authorities": ("ca_file", (BEFORE, SOON)),
    }
    more = "".join(
        f'[apis.{name}]\nbase_url = "https://a.example.com"\n{key} = "{certificate(tmp_path / name, *ends)}"\n'
        for name, (key, ends) in files.items()
    )
    place = installation(tmp_path, sqlite_database_url, more)
    assert found(place, "certificates") == [
        ("certificate_expired", "apis.over.cert_file"),
        ("certificate_expiring", "apis.soon.cert_file"),
        ("certificate_expiring", "apis.old-authorities.ca_file"),
    ]


def test_a_file_without_a_certificate_leaves_the_others_examined(tmp_path: Path, sqlite_database_url: str) -> None:
    (tmp_path / "empty").write_text("no certificate \x1b[31m")
    over = certificate(tmp_path / "over", BEFORE, name="\x1b[31mred")
    more = "".join(
        f'[apis.{name}]\nbase_url = "https://a.example.com"\nca_file = "{path}"\n'
        for name, path in (("a", tmp_path / "none"), ("b", tmp_path / "empty"), ("c", over))
    )
    result = examined(installation(tmp_path, sqlite_database_url, more), "certificates")
    assert result.state == "partly examined"
    assert "apis.a.ca_file" in (result.needs or "")
    assert "apis.b.ca_file" in (result.needs or "")
    assert [each.subject for each in result.findings] == ["apis.c.ca_file"]


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everybody on the machine gets into; those that pytest makes are its own."""
    with tempfile.TemporaryDirectory(dir=ROOM) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_files_that_others_may_read_or_write_are_found_with_the_command(
    shared_folder: Path, sqlite_template: Path
) -> None:
    path = shared_folder / "inbox.db"
    path.write_bytes(sqlite_template.read_bytes())
    path.chmod(0o600)
    place = installation(shared_folder, f"sqlite:///{path}", '[sources.b]\npreset = "github"\nsecrets = ["hunter2"]\n')
    assert found(place, "files") == []
    place.path.chmod(0o646)
    path.chmod(0o644)
    assert found(place, "files") == [
        ("exposed", str(place.path)),
        ("exposed", str(path)),
        ("writable_by_others", str(place.path)),
    ]
    assert told(place, "files")["writable_by_others"].mend == f"chmod o= {place.path}"


def test_a_source_that_accepts_unsigned_webhooks_is_found(tmp_path: Path, sqlite_database_url: str) -> None:
    place = installation(
        tmp_path, sqlite_database_url, '[sources.open]\npreset = "github"\nunsigned = true\nauth = { kind = "none" }\n'
    )
    assert found(place, "files") == [("exposed", "[sources.open]")]
