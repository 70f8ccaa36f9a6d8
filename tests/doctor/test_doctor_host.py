"""Findings in the configuration, in files, on the disk and in versions: most of them without a database."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import make_url

from inbox.clock import SystemClock
from relay.doctor import examinations
from relay.store.reads import Space
from tests.doctor.examining import ENVIRONMENT, examined, found, installation, told

NOW = SystemClock().now()
LATER, SOON, BEFORE = (NOW + timedelta(days=days) for days in (90, 9, -9))


# --- clocks


def test_a_host_whose_clock_differs_is_found(
    tmp_path: Path, postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead:
        def now(self) -> datetime:
            return SystemClock().now() + timedelta(seconds=60)

    monkeypatch.setattr(examinations, "SystemClock", Ahead)
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
        return [each.kind for each in examinations.judge_space(Space(Path("/data"), int(free), int(whole)))]

    assert kinds(5e11) == kinds(1e9) == kinds(1.5e9, whole=2e9) == []
    assert kinds(4e8) == kinds(5e7, whole=2e9) == ["disk_filling"]


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/sdb /elsewhere xfs rw 0 0\n")
    assert examinations.network_type(tmp_path / "data", mounts) == "nfs4"
    assert examinations.network_type(Path("/elsewhere"), mounts) is None
    assert examinations.network_type(tmp_path, tmp_path / "none") is None


def test_a_sqlite_file_on_a_network_disk_is_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examinations, "network_type", lambda _folder: "nfs")
    assert found(installation(tmp_path, sqlite_database_url), "disk")[0][0] == "network_disk"


# --- the configuration


def test_a_mistake_a_secret_at_its_end_and_one_in_the_file_are_found(
    tmp_path: Path, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `inbox check` finds them; tests/process/test_exposure.py has the other warnings."""
    for name in ("A", "B"):
        monkeypatch.setenv(name, f"a-secret-of-{name}")
        monkeypatch.setitem(ENVIRONMENT, name, f"a-secret-of-{name}")

    def dated(variable: str, moment: datetime) -> str:
        return f'{{ value = "env:{variable}", not_after = {moment:%Y-%m-%dT%H:%M:%SZ} }}'

    secrets = {
        "bare": '"hunter2"',
        "over": dated("A", BEFORE),
        "soon": f"{dated('A', SOON)}, {dated('B', BEFORE)}",
        "rotated": f'{dated("A", SOON)}, "env:B"',
        "later": dated("A", LATER),
    }
    more = "".join(f'[sources.{name}]\npreset = "github"\nsecrets = [{text}]\n' for name, text in secrets.items())
    open_source = '[sources.open]\npreset = "github"\nunsigned = true\nauth = { kind = "none" }\n'
    place = installation(tmp_path, sqlite_database_url, more + open_source)
    assert found(place, "configuration") == [
        ("configuration_warning", "[sources.bare] secrets[0]"),
        ("configuration_warning", "[sources.open] unsigned"),
        ("configuration_warning", "[sources.over] secrets"),
        ("expiring", "sources.soon.secrets"),
    ]
    assert "hunter2" not in str(examined(place, "configuration"))
    place = installation(tmp_path, sqlite_database_url, "[routes.other]\nsource = 'githb'\ndestination = 'audit'\n")
    assert [name for name, _ in found(place, "configuration")] == ["configuration_mistake"]


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
    certificates = [each for each in examined(place, "configuration").findings if "the certificate of" in each.sentence]
    assert [(each.kind, each.subject) for each in certificates] == [
        ("configuration_warning", "[apis.over] cert_file"),
        ("expiring", "apis.soon.cert_file"),
        ("expiring", "apis.old-authorities.ca_file"),
    ]
