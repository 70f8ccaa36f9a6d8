"""The pragma of docs/how-to/repair-the-database.md keeps a `sqlite3` shell from making checkpoints beside others' commits."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.docs.pages import the_block


def copies_back(path: Path, before_it_writes: str) -> bool:
    """Return whether a program beside another one, which sets this and then writes a few megabytes, changes the file itself."""
    with closing(sqlite3.connect(path)) as other, closing(sqlite3.connect(path, isolation_level=None)) as shell:
        other.execute("PRAGMA journal_mode = WAL")
        shell.execute("CREATE TABLE t (x)")
        shell.executescript(before_it_writes)
        for _ in range(2):
            shell.execute("INSERT INTO t VALUES (zeroblob(8000000))")
        return path.stat().st_size > 8_000_000


def test_the_pragma_of_the_page_ends_automatic_checkpoints(tmp_path: Path) -> None:
    pragma = the_block("docs/how-to/repair-the-database.md", "sql")
    assert copies_back(tmp_path / "as-it-is.db", "")
    assert not copies_back(tmp_path / "as-told.db", pragma)
