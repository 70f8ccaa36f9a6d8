"""docs/reference/configuration.md names every setting that is read back, with the value that it has to have."""

from __future__ import annotations

from inbox.db import guarantees
from inbox.db.engine import PINNED
from tests.docs.pages import PAGES

SECTION = PAGES["docs/reference/configuration.md"].partition("## The database\n")[2].partition("\n## ")[0]


def test_each_setting_that_is_refused_has_its_row() -> None:
    for name, (values, why) in guarantees.REQUIRED.items():
        assert f"| `{name}` | {' or '.join(f'`{value}`' for value in values)} | {why} |" in SECTION


def test_each_setting_that_is_said_is_named() -> None:
    for name in (*guarantees.RECOMMENDED, *guarantees.SQLITE_PRAGMAS):
        assert f"`{name}`" in SECTION


def test_each_pin_is_read_back() -> None:
    read = {name.lower() for name in guarantees.REQUIRED}
    assert {name.removeprefix("default_") for name in PINNED} <= read
