"""`inbox init`: writes the first `inbox.toml`, from answers or from flags."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from inbox.observe.visible import visible
from relay.cli.options import require_known
from relay.cli.terminal import answer, fail, put, say

if TYPE_CHECKING:
    from relay.cli.starter import Database, Kind, Starter


def init_command(
    *,
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="PRESET", help="The provider, as docs/reference/sources.md lists them."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="The work for each event: forward, sync, slack or python.")
    ] = None,
    destination: Annotated[
        str | None, typer.Option("--destination", metavar="URL", help="The system that gets the events.")
    ] = None,
    database: Annotated[str | None, typer.Option("--database", help="sqlite or postgresql.")] = None,
    path: Annotated[
        Path | None, typer.Option("--path", dir_okay=False, help="The file; inbox.toml, or what INBOX_CONFIG names.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take the default of what is not given.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write an inbox.toml with a source, a destination and a route, and say what to do next.

    It asks for what is not given. Secrets are named in the file and never written to it.

    Examples:
      inbox init
      inbox init --source github --kind forward --destination https://ci.example.com/hook
      inbox init --source shopify --kind python --database postgresql --yes
    """
    from inbox.loader.load import config_path
    from inbox.sources import PRESETS
    from relay.cli.starter import DATABASES, HANDLERS, MEANINGS, starter

    file = path or config_path()
    _require_free(file, force=force)
    asks = not yes and sys.stdin.isatty()
    titles = {name: preset.title for name, preset in PRESETS.items()}
    preset = _choice("source", source, titles, None, asks=asks)
    work = cast("Kind", _choice("kind", kind, MEANINGS, "forward", asks=asks))
    url = _url(destination, needed=work in {"forward", "sync"}, asks=asks)
    if work == "python" and destination is not None:
        fail("--destination has no meaning with --kind python: the function makes its own calls")
    kept_in = cast("Database", _choice("database", database, DATABASES, "sqlite", asks=asks))
    made = starter(preset, work, url, kept_in)
    _write(file, made.text, force=force)
    handlers = file.parent / HANDLERS
    if made.handlers is not None and not handlers.exists():
        _write(handlers, made.handlers, force=False)
    _say_next(file, made)


def _require_free(file: Path, *, force: bool) -> None:
    if file.exists() and not force:
        fail(f"there is {file} already: --force replaces it, and --path writes another file")
    if not file.parent.is_dir():
        fail(f"there is no folder {file.parent}: make it first")


def _choice(option: str, given: str | None, valid: Mapping[Any, str], default: str | None, *, asks: bool) -> str:
    """Return what was given, or the answer to a question; without a terminal the default."""
    from inbox.config.mistakes import nearest

    if given is not None:
        require_known(option, given, valid)
        return given
    if not asks:
        return default or fail(f"give --{option}, one of {', '.join(sorted(valid))}")
    for name, meaning in valid.items():
        say(f"  {name:<18} {meaning}".rstrip())
    while True:
        answered = str(typer.prompt(option, default=default, err=True)).strip()
        if answered in valid:
            return answered
        say(f"there is no {option} {answered!r}; {nearest(answered, valid)}")


def _url(given: str | None, *, needed: bool, asks: bool) -> str:
    from relay.cli.starter import DEFAULT_URL, url_problem

    if given is not None:
        return given if (problem := url_problem(given)) is None else fail(f"--destination {problem}")
    if not needed or not asks:
        return DEFAULT_URL
    while True:
        answered = str(typer.prompt("destination (a URL)", default=DEFAULT_URL, err=True)).strip()
        if (problem := url_problem(answered)) is None:
            return answered
        say(f"it {problem}")


def _write(file: Path, text: str, *, force: bool) -> None:
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        fail(f"can't write {file}: {error.strerror}")
    answer(f"wrote {file}")


def _say_next(file: Path, made: Starter) -> None:
    """Print the steps from the written file to the first webhook."""
    from inbox.loader.load import DEFAULT_FILE

    answer("next, change what differs in it, and run:")
    if str(file) != DEFAULT_FILE:
        answer(f"  export INBOX_CONFIG={shlex.quote(str(file))}")
    for variable in made.variables:
        put(Text(visible(f"  export {variable.name}=…  # {variable.meaning}")))
    for command in ("inbox migrate", "inbox check", "inbox serve &", "relay run &"):
        answer(f"  {command}")
    if made.can_send:
        answer(f"  inbox send {made.source}")
    answer(f"webhooks go to POST /webhooks/{made.source}")
