"""`inbox check`: shows every mistake of a configuration, and on request the systems that do not answer."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn
from rich.text import Text

from inbox.errors import ConfigError
from inbox.observe.visible import visible
from relay.cli.options import AsJson
from relay.cli.terminal import FINDING, WRONG_USE, Doing, as_document, bar, console, put, put_json
from relay.words import counted

if TYPE_CHECKING:
    from inbox.loader.load import ConfigFile
    from relay.check import ConfigFinding, DatabaseState, Reply

_LINE = re.compile(r"\(at line (\d+)")
"""The place in an error of the TOML parser."""
_STYLES = {"mistake": "bold red", "warning": "yellow"}
_INDENT = " " * len("mistake  ")
_SECTIONS = (("sources", "source"), ("routes", "route"), ("apis", "api"), ("destinations", "destination"))


def check_command(
    *,
    online: Annotated[
        bool,
        typer.Option("--online", help="Also ask the database and each api and destination; nothing changes there."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the configuration as both sides would at their start, and show every mistake with its line.

    Exits 2 with a mistake, by which the receiver or the relay would not start; 1 with warnings only; else 0. Functions of
    yours are imported, a SQLite database is looked at, and without --online nothing leaves this machine.

    Examples:
      inbox check
      inbox check --online
      INBOX_CONFIG=/etc/inbox-relay/new.toml inbox check --json
    """
    from inbox.loader.load import config_path, load_file
    from relay.check import ConfigFinding, database_of, findings, probes, unreached

    path = config_path()
    try:
        file = load_file(path)
    except ConfigError as error:
        line = _LINE.search(str(error))
        text = str(error).removeprefix(f"{path} ")
        unread = ConfigFinding("mistake", str(path), int(line[1]) if line else None, None, text)
        _finish(str(path), [unread], as_json=as_json)
        return
    found = findings(file, path)
    database, of_database = database_of(file, online=online)
    found += [each for each in of_database if each not in found]
    replies: list[Reply] = []
    if online:
        replies = _ask(probes(file.sound))
        found += unreached(file, replies)
    _finish(str(path), found, file, database, replies, as_json=as_json)


def _ask(probes: Mapping[str, Callable[[], Reply]]) -> list[Reply]:
    from relay.check import asked

    if not probes:
        return []
    with bar(Doing("asked "), BarColumn(), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=len(probes))
        return asked(probes, lambda reply: progress.update(task, advance=1, description=reply.key))


def _finish(
    path: str,
    found: Sequence[ConfigFinding],
    file: ConfigFile | None = None,
    database: DatabaseState | None = None,
    replies: Sequence[Reply] = (),
    *,
    as_json: bool,
) -> None:
    """Print the result, and exit by it."""
    mistakes = sum(each.level == "mistake" for each in found)
    if as_json:
        put_json(as_document(_document(path, found, file, database, replies)))
    else:
        _show(found, replies)
        _summarise(path, file, database)
        put(_verdict(mistakes, len(found) - mistakes))
    if found:
        raise typer.Exit(WRONG_USE if mistakes else FINDING)


def _document(
    path: str,
    found: Sequence[ConfigFinding],
    file: ConfigFile | None,
    database: DatabaseState | None,
    replies: Sequence[Reply],
) -> dict[str, Any]:
    import msgspec

    return {
        "file": path,
        **{section: sorted(file.source.tree.get(section, {})) if file else [] for section, _ in _SECTIONS},
        "database": None if database is None else msgspec.to_builtins(database),
        "mistakes": sum(each.level == "mistake" for each in found),
        "warnings": sum(each.level == "warning" for each in found),
        "findings": [msgspec.to_builtins(each) for each in found],
        "asked": [msgspec.to_builtins(each) for each in replies],
    }


def _show(found: Sequence[ConfigFinding], replies: Sequence[Reply]) -> None:
    width = console().width if console().is_terminal else None
    for each in sorted(found, key=lambda one: (one.level, one.line is None, one.line or 0)):
        first, *more = _wrapped(visible(str(each.place)), width)
        put(Text.assemble((each.level, _STYLES[each.level]), f"  {first}"))
        for line in more:
            put(Text(f"{_INDENT}{line}"))
    for reply in replies:
        if reply.reached:
            line = f"  {reply.key}: {reply.url} {reply.text}, {reply.milliseconds:.0f} ms"
            put(Text.assemble(("reached", "green"), visible(line)))


def _wrapped(text: str, width: int | None) -> list[str]:
    """Break a finding at its spaces, where it stands at a terminal of this width; a long word stays whole, to be copied."""
    if width is None:
        return [text]
    room = max(width - len(_INDENT), 20)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def _summarise(path: str, file: ConfigFile | None, database: DatabaseState | None) -> None:
    if file is not None:
        tree = file.source.tree
        counts = [counted(len(tree.get(section, {})), word) for section, word in _SECTIONS]
        put(Text(visible(f"{path}: {', '.join(counts)}")))
        retention = file.sound.retention
        ages = [f"{kind} {retention.age_of(kind).shown}" for kind in ("payloads", "events", "attempts", "rejected")]
        put(Text(f"retention: {', '.join(ages)}"))
    if database is not None and database.url:
        state = "not asked; --online does" if database.state == "not asked" else database.state
        put(Text(visible(f"{database.origin}: {database.url} ({state})")))


def _verdict(mistakes: int, warnings: int) -> Text:
    if mistakes:
        return Text(f"{counted(mistakes, 'mistake')}, {counted(warnings, 'warning')}", "bold red")
    if warnings:
        return Text(f"both sides would start; {counted(warnings, 'warning')}", "yellow")
    return Text("both sides would start", "green")
