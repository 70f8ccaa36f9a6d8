"""Tombi checks `inbox.toml` by the schema that `inbox schema` prints, as an editor runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relay.cli.starter import SCHEMA_FILE, read_json_schema, starter
from tests.docs.pages import PAGES, blocks

TOMBI = Path(sys.executable).with_name("tombi")
REFERENCE = f"#:schema ./{SCHEMA_FILE}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("edited")
    (made / SCHEMA_FILE).write_text(read_json_schema(), encoding="utf-8")
    return made


def lint(folder: Path, *files: Path) -> str:
    """Return the diagnostics of files, or of all in the folder."""
    command: list[str | Path] = [TOMBI, "lint", "--offline", *files]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return ended.stdout + ended.stderr if ended.returncode else ""


def test_every_configuration_of_the_documentation_is_valid_by_the_schema(folder: Path) -> None:
    written = []
    for name, page in PAGES.items():
        for at, block in enumerate(blocks(page)):
            if block.info == "toml":
                written.append(folder / f"{name.replace('/', '-')}-{at}.toml")
                written[-1].write_text(REFERENCE + block.text, encoding="utf-8")
    assert len(written) > 50
    assert lint(folder, *written) == ""


def test_an_unknown_key_and_a_wrong_value_are_found_where_they_stand(folder: Path) -> None:
    text, _ = starter("github", "sqlite")
    assert text.startswith(REFERENCE)
    file = folder / "inbox.toml"
    file.write_text(text, encoding="utf-8")
    assert lint(folder, file) == ""
    file.write_text(text.replace("signing_secret", "signing_secrets").replace('"github"', '"githbu"'), encoding="utf-8")
    found = lint(folder, file)
    assert "signing_secrets" in found
    assert "githbu" in found
