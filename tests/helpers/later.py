"""Older and newer versions of this package, each a folder to use as PYTHONPATH."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

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
