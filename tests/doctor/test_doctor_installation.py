"""Examinations of an installation: healthy, unreadable, and with findings in its files, disk and configuration."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Engine, make_url, text

from inbox.clock import SystemClock
from relay.doctor import examinations
from relay.doctor import run as runs
from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import Examination, Installation
from relay.findings import Finding
from relay.store.reads import Space
from tests.doctor.examining import (
    ENVIRONMENT,
    all_findings,
    environment_of,
    examination,
    examine,
    findings_of,
    installation,
    run_sql,
    start_a_relay,
)
from tests.helpers.databases import open_engine
from tests.helpers.processes import invoke
from tests.helpers.scripted import find_closed_port

OF_THE_TESTS_SERVER = {"fsync", "full_page_writes"}
"""Settings of the tests' Postgres, which does not sync its files."""


def test_a_healthy_installation_has_no_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    start_a_relay(engine)
    place = installation(tmp_path, database_url)
    results = runs.run(place, EXAMINATIONS)
    wrong = [each for each in runs.exclude_information(results) if each.subject not in OF_THE_TESTS_SERVER]
    assert wrong == []
    assert [(each.name, each.needs) for each in results if each.needs] == []
    assert {each.name for each in results} == {each.name for each in EXAMINATIONS}


def test_the_command_exits_with_0_without_a_finding(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = installation(tmp_path, sqlite_database_url)
    with open_engine(sqlite_database_url) as engine:
        start_a_relay(engine)
    monkeypatch.setenv("COLUMNS", "80")
    ended = invoke("inbox", "doctor", **environment_of(place))
    assert (ended.status, ended.stderr) == (0, ""), ended.stdout
    assert ended.stdout.startswith("well: no finding; ")
    document = json.loads(invoke("inbox", "doctor", "--json", **environment_of(place)).stdout)
    assert (document["critical"], document["warning"]) == (0, 0)
    assert document["at"].endswith("Z")
    assert {each["needs"] for each in document["examinations"]} == {None}


# --- a database that cannot be examined


def test_a_database_that_does_not_answer_is_one_finding_and_the_others_need_it(tmp_path: Path) -> None:
    place = installation(tmp_path, f"postgresql+psycopg://relay:hidden@127.0.0.1:{find_closed_port()}/inbox")
    ended = invoke("inbox", "doctor", "--json", **environment_of(place))
    document = json.loads(ended.stdout)
    assert [each["kind"] for each in document["examinations"][0]["findings"]] == ["database_unreachable"]
    needs = {each["name"]: each["needs"] for each in document["examinations"]}
    needing = {each.name for each in EXAMINATIONS if each.needs_database}
    assert ended.status == 1
    assert document["critical"] == 1
    assert {needs[name] for name in needing} == {"needs the database"}  # it was asked only once
    assert (needs["database"], needs["configuration"]) == (None, None)
    assert "hidden" not in ended.stdout


def test_a_missing_sqlite_file_is_a_finding_and_is_not_created(tmp_path: Path) -> None:
    place = installation(tmp_path, f"sqlite:///{tmp_path}/none.db")
    (result,) = runs.run(place, [examination("database")])
    assert [each.kind for each in result.findings] == ["database_unreachable"]
    assert not (tmp_path / "none.db").exists()


def test_an_empty_database_lacks_migrations_and_other_examinations_need_them(tmp_path: Path, postgres_url: str) -> None:
    for url in (postgres_url, f"sqlite:///{tmp_path}/empty.db"):
        if url.startswith("sqlite"):
            (tmp_path / "empty.db").touch(0o600)
        place = installation(tmp_path, url)
        assert [each.kind for each in examine(place, "migrations").findings] == ["migrations_pending"]
        result = examine(place, "relay")
        assert "run `inbox migrate`" in (result.needs or "")


def test_a_database_of_a_newer_version_is_a_finding(tmp_path: Path, database_url: str, engine: Engine) -> None:
    run_sql(engine, "UPDATE alembic_version SET version_num = '1000'")
    place = installation(tmp_path, database_url)
    assert [each.kind for each in examine(place, "migrations").findings] == ["database_newer"]
    assert "needs the schema of exactly this version" in (examine(place, "schema").needs or "")


# --- independence of examinations


def test_an_examination_that_fails_or_is_slow_is_reported_and_stops_no_other(tmp_path: Path, database_url: str) -> None:
    slow = "SELECT pg_sleep(60)" if database_url.startswith("postgres") else _ENDLESS

    def fails(_place: Installation) -> Iterator[Finding]:
        yield Finding("seen", "warning", "")
        raise RuntimeError("a secret \x1b[31m")

    def is_slow(place: Installation) -> Iterator[Finding]:
        with place.reading() as connection:
            connection.execute(text(slow)).all()
        yield from ()

    place = installation(tmp_path, database_url, seconds=1.0)
    made = [Examination(each.__name__, each, ()) for each in (fails, is_slow)]
    results = {each.name: each for each in runs.run(place, [*made, examination("clock")])}
    assert len(results["fails"].findings) == 1
    assert results["fails"].needs == "needs a fix in its code: RuntimeError"
    assert (results["is_slow"].needs or "").startswith("needs the database to answer: ")
    assert results["clock"].needs is None


_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def test_an_examination_does_not_wait_for_a_locked_table(tmp_path: Path, postgres_database_url: str) -> None:
    with open_engine(postgres_database_url) as engine, engine.begin() as other:
        other.execute(text("LOCK TABLE gate IN ACCESS EXCLUSIVE MODE"))
        result = examine(installation(tmp_path, postgres_database_url), "relay")
    assert "lock timeout" in (result.needs or "")


# --- an unreadable SQLite file


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _damage_a_table(path: Path) -> None:
    pages = "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE tbl_name = 'open_delivery' AND rootpage > 0"
    with contextlib.closing(sqlite3.connect(path)) as connection, path.open("r+b") as file:
        for page, size in connection.execute(pages).fetchall():
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)


HARMS: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"this is no database " * 500),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:8192] + b"\xff" * (path.stat().st_size - 8192)),
    "damaged in a table": _damage_a_table,
    "a folder": _become_a_folder,
    "without rights": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_unreadable_sqlite_file_is_a_finding(tmp_path: Path, sqlite_database_url: str, harm: str) -> None:
    place = installation(tmp_path, sqlite_database_url)
    path = Path(make_url(sqlite_database_url).database or "")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    HARMS[harm](path)
    is_root = os.geteuid() == 0
    if is_root and harm == "without rights":
        os.seteuid(65_534)
    try:
        results = runs.run(place, EXAMINATIONS)
    finally:
        if is_root:
            os.seteuid(0)
    found = {each.kind: each for each in runs.exclude_information(results)}
    assert found["database_unreachable"].level == "critical"
    assert str(path) in found["database_unreachable"].remedy


# --- Findings in clocks, files, disks and the configuration


NOW = SystemClock().now()
LATER, SOON, BEFORE = (NOW + timedelta(days=days) for days in (90, 9, -9))


# --- clocks


def test_a_wrong_clock_of_the_host_is_found(
    tmp_path: Path, postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead:
        def now(self) -> datetime:
            return SystemClock().now() + timedelta(seconds=60)

    monkeypatch.setattr(examinations, "SystemClock", Ahead)
    place = installation(tmp_path, postgres_database_url)
    assert findings_of(place, "clock") == [("clock_skew", "clock")]
    assert "s behind this host's" in all_findings(place, "clock")["clock_skew"].sentence


# --- SQLite


def test_a_sqlite_file_without_wal_is_found_and_not_changed(tmp_path: Path, sqlite_database_url: str) -> None:
    path = make_url(sqlite_database_url).database or ""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    connection.close()
    place = installation(tmp_path, sqlite_database_url)
    assert findings_of(place, "durability") == [("setting_lost", "journal_mode")]
    assert findings_of(place, "durability") == [("setting_lost", "journal_mode")]
    connection = sqlite3.connect(path)
    connection.execute(all_findings(place, "durability")["setting_lost"].remedy)
    connection.close()
    assert findings_of(place, "durability") == []


# --- disk


def test_a_nearly_full_disk_is_found() -> None:
    def kinds(free: float, whole: float = 1e12) -> list[str]:
        return [each.kind for each in examinations.judge_space(Space(Path("/data"), int(free), int(whole)))]

    assert kinds(5e11) == kinds(1e9) == kinds(1.5e9, whole=2e9) == []
    assert kinds(4e8) == kinds(5e7, whole=2e9) == ["disk_filling"]


def test_a_network_file_system_is_recognized(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb /elsewhere xfs rw 0 0\n")
    assert examinations.network_type(tmp_path / "data", mounts) == "nfs4"
    assert examinations.network_type(Path("/elsewhere"), mounts) is None
    assert examinations.network_type(tmp_path, tmp_path / "none") is None


def test_a_sqlite_file_on_a_network_disk_is_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examinations, "network_type", lambda _folder: "nfs")
    assert findings_of(installation(tmp_path, sqlite_database_url), "disk")[0][0] == "network_disk"


# --- the configuration


def test_mistakes_expiring_secrets_and_inline_secrets_are_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`inbox check` finds them too; tests/process/test_secrets.py has the other warnings."""
    for name in ("A", "B"):
        monkeypatch.setenv(name, f"a-secret-of-{name}")
        monkeypatch.setitem(ENVIRONMENT, name, f"a-secret-of-{name}")

    def secret_until(variable: str, moment: datetime) -> str:
        return f'{{ value = "env:{variable}", not_after = {moment:%Y-%m-%dT%H:%M:%SZ} }}'

    secrets = {
        "bare": '"hunter2"',
        "over": secret_until("A", BEFORE),
        "soon": f"{secret_until('A', SOON)}, {secret_until('B', BEFORE)}",
        "rotated": f'{secret_until("A", SOON)}, "env:B"',
        "later": secret_until("A", LATER),
    }
    more = "".join(f'[sources.{name}]\npreset = "github"\nsecrets = [{text}]\n' for name, text in secrets.items())
    open_source = '[sources.open]\npreset = "github"\nunsigned = true\nauth = { kind = "none" }\n'
    place = installation(tmp_path, sqlite_database_url, more + open_source)
    assert findings_of(place, "configuration") == [
        ("configuration_warning", "[sources.bare] secrets[0]"),
        ("configuration_warning", "[sources.open] unsigned"),
        ("configuration_warning", "[sources.over] secrets"),
        ("expiring", "sources.soon.secrets"),
    ]
    assert "hunter2" not in str(examine(place, "configuration"))
    place = installation(tmp_path, sqlite_database_url, "[routes.other]\nsource = 'githb'\ndestination = 'audit'\n")
    assert [name for name, _ in findings_of(place, "configuration")] == ["configuration_mistake"]


def write_certificate(path: Path, *ends: datetime, name: str = "client") -> Path:
    """Write a file with a certificate for each end of validity."""
    key = ec.generate_private_key(ec.SECP256R1())
    whole = b""
    for end in ends:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        signed = builder.not_valid_before(BEFORE - timedelta(days=9)).not_valid_after(end).sign(key, hashes.SHA256())
        whole += signed.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(whole)
    return path


def test_expiring_certificates_are_found(tmp_path: Path, sqlite_database_url: str) -> None:
    files = {
        "over": ("cert_file", (BEFORE,)),
        "soon": ("cert_file", (SOON, LATER)),  # the first is the client's own
        "later": ("cert_file", (LATER, BEFORE)),
        "authorities": ("ca_file", (BEFORE, LATER)),
        "old-authorities": ("ca_file", (BEFORE, SOON)),
    }
    more = "".join(
        f'[apis.{name}]\nbase_url = "https://a.example.com"\n{key} = "{write_certificate(tmp_path / name, *ends)}"\n'
        for name, (key, ends) in files.items()
    )
    place = installation(tmp_path, sqlite_database_url, more)
    certificates = [each for each in examine(place, "configuration").findings if "the certificate of" in each.sentence]
    assert [(each.kind, each.subject) for each in certificates] == [
        ("configuration_warning", "[apis.over] cert_file"),
        ("expiring", "apis.soon.cert_file"),
        ("expiring", "apis.old-authorities.ca_file"),
    ]
