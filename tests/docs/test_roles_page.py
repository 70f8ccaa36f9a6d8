"""docs/how-to/limit-what-roles-may-do.md: its statements run, and its tables are those of the code."""

from __future__ import annotations

import contextlib
import os
import re
import shlex

from inbox.db.migrate import ROLES, roles_script
from tests.docs.pages import PAGES, the_block
from tests.helpers.outage import connect_postgres
from tests.helpers.roles import granted
from tests.helpers.sqlite_shell import asked

PAGE = "docs/how-to/limit-what-roles-may-do.md"


def test_each_role_and_each_of_its_settings_has_its_row() -> None:
    for role in ROLES:
        assert f"| `inbox_{role}` |" in PAGES[PAGE]
    settings = re.findall(r"\(\d, 'inbox_(\w+)', '(\w+)', '(\w+)'\)", roles_script())
    assert len(settings) == 13
    for role, name, value in settings:
        said = f"{role}, reader_without_payloads" if role == "reader" else role
        assert f"| {said} | `{name}` | `{value}` |" in PAGES[PAGE]


def test_the_statements_of_the_page_make_login_roles_that_may_what_their_group_may(postgres_database_url: str) -> None:
    prefix = f"page{os.getpid()}"
    people = ("receiver_1", "relay_1", "web_1", "anna")

    def ours(sql: str) -> str:
        for name in people:
            sql = sql.replace(f"ROLE {name} ", f"ROLE {prefix}_{name} ")
        return sql.replace("inbox_", f"{prefix}_").replace("DATABASE inbox", f"DATABASE {database}")

    database = postgres_database_url.rpartition("/")[2].partition("?")[0]
    with (
        granted(postgres_database_url, prefix) as roles,
        contextlib.closing(connect_postgres(postgres_database_url)) as admin,
    ):
        try:
            for holding in ("LOGIN", "REVOKE"):
                admin.execute(ours(the_block(PAGE, "sql", holding)).encode())
            roles.grant()
            set_ = "SELECT setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE rolname = %s"
            (settings,) = admin.execute(set_.encode(), (f"{prefix}_anna",)).fetchone() or ([],)
            assert "statement_timeout=5min" in settings
            may = (
                "SELECT has_table_privilege(%s, 'inbox', 'SELECT'),"
                " has_database_privilege('public', current_database(), 'CONNECT')"
            )
            assert admin.execute(may.encode(), (f"{prefix}_anna",)).fetchone() == (True, False)
        finally:
            for name in people:
                admin.execute(f"DROP ROLE IF EXISTS {prefix}_{name}".encode())


def test_the_command_of_the_page_reads_a_sqlite_file(sqlite_database_url: str) -> None:
    _, where, query = shlex.split(the_block(PAGE, "sh", "mode=ro"))
    assert asked(where.replace("inbox.db", sqlite_database_url.removeprefix("sqlite:///")), query) == "0"
