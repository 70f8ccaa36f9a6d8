"""Both command lines, from their help texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import typer

from docs.blocks.common import abbreviate, format_list, format_table, join_names
from relay.cli.inbox import app as inbox_app
from relay.cli.main import app as relay_app
from relay.operations.table import OPERATIONS

MANY = 3
"""Commands that share an option, with the same default and help, before it is described once."""


def list_common_options() -> str:
    """Tabulate the options that many commands share."""
    return f"{format_list(sorted(_find_common()))}\n*Selection* is {join_names(_SELECTION)}.\n"


def describe_inbox() -> str:
    """Describe every command of `inbox`."""
    return "\n".join(_describe_commands("inbox", typer.main.get_command(inbox_app)))


def describe_relay() -> str:
    """Describe every command of `relay`."""
    return "\n".join(_describe_commands("relay", typer.main.get_command(relay_app)))


def list_sql_commands() -> str:
    """Tabulate the kinds of commands in SQL, with the keys of their selections."""
    keys = abbreviate({each.kind: each.keys for each in OPERATIONS.values()})
    rows = ((f"`{each.kind}`", keys[each.kind], "yes" if each.has_dry_run else "no") for each in OPERATIONS.values())
    return format_table(("kind", "keys of the selection", "dry run"), rows)


def _describe_commands(path: str, command: Any) -> Iterator[str]:  # noqa: ANN401  # typer's own, which have no public names
    """Yield a command's help, then those of its subcommands."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    below = getattr(command, "commands", {})
    usage = " ".join([path, *(p.name.upper() for p in arguments), *(["COMMAND"] if below else [])])
    explained, _, examples = (command.help or "").replace("\b", "").partition("Examples:")
    if not examples:
        explained, _, examples = explained.partition("Example:")
    yield f"{'##' if below and ' ' not in path else '###'} `{usage}`\n"
    yield f"{explained.strip()}\n"
    rows = list(map(_make_row, _find_options(command)))
    own = [row for row in rows if row not in _find_common()]
    if own:
        yield format_list(own)
    if common := [name for name, _ in rows if not any(name == row[0] for row in own)]:
        if set(common) >= set(_SELECTION):
            common = ["*selection*", *(name for name in common if name not in _SELECTION)]
        yield f"Common options: {join_names(common)}.\n"
    if examples:
        yield ("```text\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```\n")
    for name, inner in below.items():
        yield from _describe_commands(f"{path} {name}", inner)


_FILTERS = "--seq --route --source --destination --api --cause --status --error --event-type --since --until"
_SELECTION = tuple(f"`{name}`" for name in ["SEQS", *_FILTERS.split()])
"""Common options that select deliveries, together."""
_OF_EVERY_PROGRAM = frozenset({"help", "version", "install_completion", "show_completion"})


@cache
def _find_common() -> frozenset[tuple[str, str]]:
    apps = map(typer.main.get_command, (inbox_app, relay_app))
    counts = Counter(row for app in apps for each in _walk(app) for row in map(_make_row, _find_options(each)))
    by_name = {row[0]: row for row, number in reversed(counts.most_common()) if number >= MANY}
    return frozenset(by_name.values())


def _walk(command: Any) -> Iterator[Any]:  # noqa: ANN401  # as `_commands`
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _walk(inner)


def _find_options(command: Any) -> list[Any]:  # noqa: ANN401  # likewise
    return [p for p in command.params if p.name not in _OF_EVERY_PROGRAM and not getattr(p, "hidden", False)]


def _make_row(parameter: Any) -> tuple[str, str]:  # noqa: ANN401  # likewise
    is_argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
    return f"`{name}`", f"{parameter.help or ''}{_describe_default(parameter)}"


def _describe_default(parameter: Any) -> str:  # noqa: ANN401  # likewise
    if parameter.required:
        return " Required."
    return "" if parameter.default is None or parameter.is_flag else f" Default: `{parameter.default}`."
