"""`--version` of both command lines."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Annotated

import typer

from inbox.cli.terminal import answer


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        answer(f"inbox-relay {version('inbox-relay')} on Python {platform.python_version()}")
        raise typer.Exit


def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Take the options before a command's name."""
