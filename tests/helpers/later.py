"""Later versions of this package: the same code, and migrations that are made up."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]

_MODULE = '''"""{says}"""

from __future__ import annotations

from inbox.db import migration_script

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    migration_script.run(__file__)
'''


class MadeUp(msgspec.Struct, frozen=True):
    """A migration that no version has."""

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
    postgres="CREATE INDEX CONCURRENTLY ix_inbox_region ON inbox (region, seq)",
    sqlite="CREATE INDEX ix_inbox_region ON inbox (region, seq)",
)
CONTRACTING = MadeUp(
    "1000",
    "Nobody reads relay_node.host any more.",
    postgres="ALTER TABLE relay_node ALTER COLUMN host DROP NOT NULL",
    sqlite="CREATE TABLE taken_away (id INTEGER)",
)


def write_migrations(package: Path, made_up: Sequence[MadeUp], *, after: str) -> Path:
    """Copy the migrations there and add to them; gives the folder."""
    shutil.copytree(ROOT / "migrations", package, ignore=shutil.ignore_patterns("__pycache__"))
    for each in made_up:
        file = package / "versions" / f"{each.revision}_made_up.py"
        file.write_text(_MODULE.format(says=each.says, revision=each.revision, before=after), encoding="utf-8")
        file.with_suffix(".postgresql.sql").write_text(each.postgres, encoding="utf-8")
        file.with_suffix(".sqlite.sql").write_text(each.sqlite, encoding="utf-8")
        after = each.revision
    return package


def write_version(folder: Path, made_up: Sequence[MadeUp], *, after: str) -> Path:
    """A folder which, as PYTHONPATH, makes a Python run this later version."""
    folder.mkdir()
    for name in ("inbox", "relay"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_migrations(folder / "migrations", made_up, after=after)
    return folder
