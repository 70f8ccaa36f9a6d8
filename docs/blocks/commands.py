"""Both command lines, from their help texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from docs.blocks.common import table
from relay.cli.inbox import app as inbox_app
from relay.cli.main import app as relay_app
from relay.operations.table import OPERATIONS


def inbox_commands() -> str:
    """Every command of `inbox`."""
    return "\n".join(_commands("inbox", typer.main.get_command(inbox_app)))


def relay_commands() -> str:
    """Every command of `relay`."""
    return "\n".join(_commands("relay", typer.main.get_command(relay_app)))


def sql_commands() -> str:
    """Kinds of commands in SQL, with the keys of their selections."""
    rows = (
        (f"`{each.kind}`", ", ".join(f"`{key}`" for key in each.keys), "yes" if each.has_dry_run else "no")
        for each in OPERATIONS.values()
    )
    return table(("kind", "keys of the selection", "dry run"), rows)


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
    listed = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    if listed:
        yield table(
            ("argument or option", "default", "meaning"),
            (
                (f"`{p.name.upper() if p in arguments else ', '.join(p.opts)}`", _default_of(p), p.help or "")
                for p in listed
            ),
        )
    if examples:
        yield ("```text\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```\n")
    for name, inner in below.items():
        yield from _commands(f"{path} {name}", inner)


def _default_of(parameter: Any) -> str:  # noqa: ANN401  # likewise
    if parameter.required:
        return "required"
    return "" if parameter.default is None or parameter.is_flag else f"`{parameter.default}`"
