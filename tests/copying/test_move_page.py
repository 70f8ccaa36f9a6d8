"""The page about moving to Postgres works from its first command to its last, with a real Postgres."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.copying.conftest import Databases
from tests.docs.pages import PAGES, blocks, expected_after, shell

PAGE = "docs/how-to/move-to-postgres.md"
NAMED = "postgresql+psycopg://inbox@db.example.com/inbox"


@pytest.mark.long
def test_the_commands_of_the_page_move_an_installation(tmp_path: Path, databases: Databases) -> None:
    page = PAGES[PAGE]
    assert NAMED in page
    read = blocks(page.replace(NAMED, f"'{databases.new('postgres')}'"))
    with shell(tmp_path) as terminal:
        for position, block in enumerate(read):
            if block.info == "toml":
                (tmp_path / "here" / "inbox.toml").write_text(block.text, encoding="utf-8")
            elif block.info == "sh":
                terminal.run(block, expected_after(read, position))
