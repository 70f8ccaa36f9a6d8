"""docs/how-to/limit-what-roles-may-do.md: its statements run, and its tables are those of the code."""

from __future__ import annotations

import contextlib
import os
import shlex

from inbox.db.grants import names
from inbox.db.roles import ROLES, SETTINGS
from tests.docs.pages import PAGES, the_block
from tests.helpers.outage import connect_postgres
from tests.helpers.roles import granted
from tests.helpers.sqlite_shell import asked

PAGE = "docs/how-to/limit-what-roles-may-do.md"


def test_each_role_has_its_row() -> None:
    for name in names("inbox", None).values():
        assert f"| `{name}` |" in PAGES[PAGE]


def test_each_setting_has_its_row_with_value_and_reason() -> None:
    rows = {
        (role.strip(), name): (value, why)
        for line in PAGES[PAGE].splitlines()
        if line.count("|") == 5 and "`" in line
        for roles, name, value, why in [[part.strip(" `") for part in line.strip("|").split("|")]]
        for role in roles.split(",")
    }
    in_code = {(role, name): (one.value, one.why) for role in ROLES for name, one in SETTINGS[role].items()}
    assert {key: rows[key] for key in in_code} == in_code


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
            assert [line for line in roles.grant() if f'"{prefix}_anna"' in line and "statement_timeout" in line]
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
