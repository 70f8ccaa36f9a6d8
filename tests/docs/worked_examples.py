"""The worked examples of the pages for contributors, applied to a copy of the checkout."""

from __future__ import annotations

import re
from pathlib import Path

from inbox.db.migrate import head
from tests.docs.pages import PAGES, blocks


def apply(page: str, folder: Path) -> None:
    """Do in `folder` what a page says."""
    text = PAGES[page]
    if page.endswith("column.md"):
        text = re.sub(r"0001|0002|1000", lambda number: _since(number[0]), text)
    for block in blocks(text):
        if block.info in {"python", "sql"}:
            path, content = _head(block.text)
            assert not (folder / path).exists(), f"{page}:{block.line} makes {path}, which is there"
            (folder / path).write_text(content, encoding="utf-8")
        elif block.info == "diff":
            path, changes = _head(block.text)
            change(folder / path, changes)


def _since(number: str) -> str:
    """The number that a migration of the page has after whatever has been added since."""
    newest = int(head())
    numbers = {"0001": newest, "0002": newest + 1, "1000": (newest // 1000 + 1) * 1000}
    return f"{numbers[number]:04}"


def _head(text: str) -> tuple[str, str]:
    """The path that the first line names, and the rest."""
    first, _, rest = text.partition("\n")
    return first.split(" ", 1)[1], rest


def change(path: Path, changes: str) -> None:
    """Apply the changes of a `diff` block; `@@` lies between two of them."""
    text = path.read_text(encoding="utf-8")
    for hunk in changes.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path.name} does not have this once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
