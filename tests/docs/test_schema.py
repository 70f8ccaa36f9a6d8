"""Editors complete and check `inbox.toml` by the schema that `inbox schema` prints. Tombi does, as an editor runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from relay.cli.starter import SCHEMA_FILE, read_json_schema, starter
from tests.docs.pages import PAGES, blocks
from tests.helpers.waiting import until

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


def test_a_language_server_completes_keys_and_values(folder: Path) -> None:
    text = REFERENCE + '[destinations.crm]\nkind = "sync"\nconc\n[routes.a]\nordering = ""\n'
    file = folder / "completed.toml"
    file.write_text(text, encoding="utf-8")
    with LanguageServer.start() as server:
        server.ask("initialize", {"capabilities": {}, "processId": None, "rootUri": None})
        server.send("initialized", {})
        server.send(
            "textDocument/didOpen",
            {"textDocument": {"uri": file.as_uri(), "languageId": "toml", "version": 1, "text": text}},
        )
        keys, values = (server.complete(file, line=line, character=character) for line, character in ((3, 4), (5, 12)))
    assert "concurrency" in keys
    assert {"latest", "strict"} <= values


class LanguageServer(NamedTuple):
    """A running `tombi lsp`, which speaks the Language Server Protocol over its pipes."""

    to: IO[bytes]
    by: IO[bytes]

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[LanguageServer]:
        with subprocess.Popen([TOMBI, "lsp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stdout
            try:
                yield cls(process.stdin, process.stdout)
            finally:
                process.kill()

    def complete(self, file: Path, **position: int) -> set[str]:
        """Return the labels of a completion."""
        where = {"textDocument": {"uri": file.as_uri()}, "position": position}
        # null until the server has loaded the file
        found = until(lambda: self.ask("textDocument/completion", where), "a completion")
        return {item["label"].strip('"') for item in (found["items"] if isinstance(found, dict) else found)}

    def send(self, method: str, params: object, **more: str) -> None:
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **more}).encode()
        self.to.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.to.flush()

    def ask(self, method: str, params: object) -> Any:  # noqa: ANN401  # whatever the method returns
        """Send a request, and return its result; other messages are skipped."""
        self.send(method, params, id=method)
        while (message := json.loads(self.by.read(self._read_length()))).get("id") != method:
            pass
        return message["result"]

    def _read_length(self) -> int:
        headers = dict(line.split(b": ") for line in iter(lambda: self.by.readline().strip(), b""))
        return int(headers[b"Content-Length"])
