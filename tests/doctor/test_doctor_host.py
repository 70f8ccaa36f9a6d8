"""Findings in the configuration, in files, on the disk and in versions: most of them without a database."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Engine, make_url

from inbox.clock import SystemClock
from inbox.doctor import database
from inbox.events.timestamps import time_text
from tests.doctor.examining import examined, found, installation, run_sql, told
from tests.helpers.room import ROOM

NOW = SystemClock().now()
LATER, SOON, BEFORE = (NOW + timedelta(days=days) for days in (90, 9, -9))


def toml(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


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
    assert "s behind this host's" in told(place, "clock")["clock_skew"].sentence


# --- SQLite


def test_a_file_that_somebody_took_out_of_wal_is_found_and_left_as_it_is(
    tmp_path: Path, sqlite_database_url: str
) -> None:
    path = make_url(sqlite_database_url).database or ""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    connection.close()
    place = installation(tmp_path, sqlite_database_url)
    assert found(place, "durability") == [("setting_lost", "journal_mode")]
    assert found(place, "durability") == [("setting_lost", "journal_mode")]
    connection = sqlite3.connect(path)
    connection.execute(told(place, "durability")["setting_lost"].remedy)
    connection.close()
    assert found(place, "durability") == []


# --- disk


def test_a_disk_that_is_nearly_full_is_found() -> None:
    def kinds(free: float, whole: float = 1e12) -> list[str]:
        return [each.kind for each in database.judge_space(Path("/data"), free, whole)]

    assert kinds(5e11) == kinds(1.5e9, whole=2e9) == []
    assert kinds(4e8) == kinds(5e7, whole=2e9) == ["disk_filling"]


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
        ("retention_behind", "pruner"),
        ("retention_behind", "payloads"),
        ("retention_behind", "rejected"),
    ]
    _, payloads, rejected = examined(place, "retention").findings
    assert payloads.sentence == "payloads: the oldest expired row is 2.0 d late"
    assert rejected.remedy == "inbox prune --kind rejected"


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb /elsewhere xfs rw 0 0\n")
    assert database.network_type(tmp_path / "data", mounts) == "nfs4"
    assert database.network_type(Path("/elsewhere"), mounts) is None
    assert database.network_type(tmp_path, tmp_path / "none") is None


def test_a_sqlite_file_on_a_network_disk_is_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "network_type", lambda _folder: "nfs")
    assert found(installation(tmp_path, sqlite_database_url), "disk")[0][0] == "network_disk"


# --- the configuration


def test_mistakes_are_found_as_inbox_check_finds_them(tmp_path: Path, sqlite_database_url: str) -> None:
    place = installation(tmp_path, sqlite_database_url, "[routes.other]\nsource = 'githb'\ndestination = 'audit'\n")
    assert [name for name, _ in found(place, "configuration")] == ["configuration_mistake"]
    assert "did you mean 'github'" in told(place, "configuration")["configuration_mistake"].sentence


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
    assert told(place, "files")["writable_by_others"].remedy == f"chmod o= {place.path}"


def test_a_source_that_accepts_unsigned_webhooks_is_found(tmp_path: Path, sqlite_database_url: str) -> None:
    place = installation(
        tmp_path, sqlite_database_url, '[sources.open]\npreset = "github"\nunsigned = true\nauth = { kind = "none" }\n'
    )
    assert found(place, "files") == [("exposed", "[sources.open]")]
