"""Both command lines, from their help texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import typer

from docs.blocks.common import table
from relay.cli.inbox import app as inbox_app
from relay.cli.main import app as relay_app
from relay.operations.table import OPERATIONS

MANY = 3
"""An option that so many commands have, with the same default and help, is described once."""


def common_options() -> str:
    """The options that many commands have."""
    return table(_HEADINGS, sorted(_common()))


def inbox_commands() -> str:
    """Every command of `inbox`."""
    return "\n".join(_commands("inbox", typer.main.get_command(inbox_app)))


def relay_commands() -> str:
    """Every command of `relay`."""
    return "\n".join(_commands("relay", typer.main.get_command(relay_app)))


def sql_commands() -> str:
    """Tabulate the kinds of commands in SQL with the keys of their selections; "filters" are those that retry has."""
    filters = tuple(OPERATIONS["retry"].keys)

    def name_keys(keys: Iterable[str]) -> str:
        named = list(keys)
        has_filters = set(filters) <= set(named)
        own = [f"`{key}`" for key in named if not (has_filters and key in filters)]
        return ", ".join([*(["filters"] if has_filters else []), *own])

    rows = (
        (f"`{each.kind}`", name_keys(each.keys), "yes" if each.has_dry_run else "no") for each in OPERATIONS.values()
    )
    listed = ", ".join(f"`{key}`" for key in filters)
    return f"{table(('kind', 'keys of the selection', 'dry run'), rows)}\nFilters are {listed}.\n"


def _commands(path: str, command: Any) -> Iterator[str]:  # noqa: ANN401  # typer's own, which have no public names
    """A command's help, then those below it."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    below = getattr(command, "commands", {})
    usage = " ".join([path, *(p.name.upper() for p in arguments), *(["COMMAND"] if below else [])])
    explained, _, examples = (command.help or "").replace("\b", "").partition("Examples:")
    if not examples:
        explained, _, examples = explained.partition("Example:")
    yield f"{'##' if below and ' ' not in path else '###'} `{usage}`\n"
    yield f"{explained.strip()}\n"
    rows = list(map(_row, _listed(command)))
    own = [row for row in rows if row not in _common()]
    if own:
        yield table(_HEADINGS, own)
    if common := [name for name, *_ in rows if not any(name == row[0] for row in own)]:
        yield f"Common options: {', '.join(common)}.\n"
    if examples:
        yield ("```text\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```\n")
    for name, inner in below.items():
        yield from _commands(f"{path} {name}", inner)


_HEADINGS = ("argument or option", "default", "meaning")


@cache
def _common() -> frozenset[tuple[str, str, str]]:
    apps = map(typer.main.get_command, (inbox_app, relay_app))
    counts = Counter(row for app in apps for each in _walk(app) for row in map(_row, _listed(each)))
    by_name = {row[0]: row for row, number in reversed(counts.most_common()) if number >= MANY}
    return frozenset(by_name.values())


def _walk(command: Any) -> Iterator[Any]:  # noqa: ANN401  # as `_commands`
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _walk(inner)


def _listed(command: Any) -> list[Any]:  # noqa: ANN401  # likewise
    return [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]


def _row(parameter: Any) -> tuple[str, str, str]:  # noqa: ANN401  # likewise
    is_argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
    return f"`{name}`", _default_of(parameter), parameter.help or ""


def _default_of(parameter: Any) -> str:  # noqa: ANN401  # likewise
    if parameter.required:
        return "required"
    return "" if parameter.default is None or parameter.is_flag else f"`{parameter.default}`"
