"""docs/how-to/limit-what-roles-may-do.md has the tables of the code; test_pages_on_postgres.py runs its statements."""

from __future__ import annotations

import re
import shlex

from inbox.db.migrate import ROLES, roles_script
from tests.docs.pages import PAGES, the_block
from tests.helpers.machine import run_sqlite_shell

PAGE = "docs/how-to/limit-what-roles-may-do.md"


def test_each_role_and_each_of_its_settings_has_its_row() -> None:
    for role in ROLES:
        assert f"| `inbox_{role}` |" in PAGES[PAGE]
    settings = re.findall(r"\(\d, 'inbox_(\w+)', '(\w+)', '(\w+)'\)", roles_script())
    assert len(settings) == 13
    for role, name, value in settings:
        said = f"{role}, reader_without_payloads" if role == "reader" else role
        assert f"| {said} | `{name}` | `{value}` |" in PAGES[PAGE]


def test_the_command_of_the_page_reads_a_sqlite_file(sqlite_database_url: str) -> None:
    _, where, query = shlex.split(the_block(PAGE, "sh", "mode=ro"))
    assert run_sqlite_shell(where.replace("inbox.db", sqlite_database_url.removeprefix("sqlite:///")), query) == "0"
