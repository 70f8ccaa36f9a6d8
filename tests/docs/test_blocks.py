"""Commands that the pages tell a reader to type work, and print the output that the pages show."""

from __future__ import annotations

from pathlib import Path

import pytest

from inbox.loader.load import parse_config
from tests.docs.pages import PAGES, blocks, expected_after, shell

KINDS = {
    "sh", "toml", "text", "sql", "sql postgres", "sql sqlite", "python", "diff", "json", "caddyfile", "ini", "http",
}  # fmt: skip
"""`sql` is run by test_dba_page, test_commands_in_sql and test_sqlite_shell, `python` and `diff` by test_contributing,
`python` and `json` by
test_mapping_page, `python` of docs/how-to/write-a-handler.md by test_handlers, `caddyfile` by
tests/process/test_behind_a_proxy.py, `ini` by tests/process/test_behind_a_pooler.py. All of docs/recipes/ is followed by
tests/recipes."""

RECIPES = "docs/recipes/"
"""Their pages need services that tests/recipes has."""

ON_POSTGRES = {
    "docs/how-to/move-to-postgres.md": "tests/copying/test_copy.py",
    "docs/how-to/limit-what-roles-may-do.md": "tests/docs/test_pages_on_postgres.py",
    "docs/how-to/back-up-and-restore.md": "tests/docs/test_pages_on_postgres.py",
}
"""Pages that need a Postgres, which the tests beside them have."""

RUNBOOKS = "docs/how-to/runbooks/"
"""Their commands are typed by tests/docs/test_runbooks.py, on an installation that has the trouble."""

WITH_PROMETHEUS = {"docs/how-to/watch-with-prometheus.md": "tests/docs/test_prometheus_rules.py"}
"""Pages that need files of deploy/, which the test beside them copies."""

WITH_THE_PAGE = {"docs/reference/web-api.md": "tests/docs/test_web_api_page.py"}
"""Pages that need the operator's page, which the test beside them starts."""

ON_A_MACHINE = {"docs/tutorial/go-live.md": "tests/docs/test_go_live_page.py"}
"""Pages for root, which the test beside them types on a machine of its own."""

FIRST = "docs/tutorial/quickstart.md"
SECOND = "docs/tutorial/integrate-two-services.md"
"""The page whose commands are run each time, after those of `FIRST`, where it goes on; those of the others when there is time."""
ALSO_AFTER_THE_FIRST = "docs/how-to/add-a-sync.md"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_block_is_of_a_kind_that_a_test_looks_at_and_a_configuration_is_whole(page: str) -> None:
    for block in blocks(PAGES[page]):
        assert block.info in KINDS, f"{page}:{block.line}: nothing tests a block of {block.info!r}"
        if block.info == "toml":
            assert parse_config(block.text, f"{page}:{block.line}").sources, "so that it is worth reading"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=[] if name == SECOND else pytest.mark.nightly)
        for name, text in sorted(PAGES.items())
        if "```sh\n" in text
        and not name.startswith((RECIPES, RUNBOOKS))
        and name not in (FIRST, *ON_POSTGRES, *WITH_THE_PAGE, *WITH_PROMETHEUS, *ON_A_MACHINE)
    ],
)
def test_the_commands_of_a_page_work_one_after_the_other(page: str, tmp_path: Path) -> None:
    read = [*(blocks(PAGES[FIRST]) if page in (SECOND, ALSO_AFTER_THE_FIRST) else ()), *blocks(PAGES[page])]
    with shell(tmp_path) as terminal:
        for position, block in enumerate(read):
            if block.info == "toml":
                (tmp_path / "here" / "inbox.toml").write_text(terminal.of_this_machine(block.text), encoding="utf-8")
            elif block.info == "sh":
                terminal.run(block, expected_after(read, position))
