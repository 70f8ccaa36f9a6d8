"""Both command lines as programs: their groups of commands, their help texts, `--version`, and the errors that end them."""

from __future__ import annotations

import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version as version_of
from inspect import Parameter, Signature
from typing import Annotated, Any, get_args

import typer
from rich.markup import escape
from typer.core import TyperGroup

from inbox.observe.visible import visible_text
from relay.cli.terminal import answer

_EXAMPLES = re.compile(r"^Examples?:$", re.MULTILINE)


class Commands(TyperGroup):
    """The commands of a command line. Errors of wrong use repeat what was given, so they are escaped as everything is."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401  # typer's own, handed through
        super().__init__(**given)
        for command in (self, *self.commands.values()):
            command.help = escape(as_help(command.help or ""))  # "[retention]" is no markup
            _hide_types(command)

    def make_context(self, *given: Any, **more: Any) -> Any:  # noqa: ANN401  # likewise
        """Read the arguments before the command's name."""
        with _escaped():
            return super().make_context(*given, **more)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # likewise
        """Read the arguments of the command, and run it."""
        with _escaped():
            return super().invoke(ctx)


def _hide_types(command: Any) -> None:  # noqa: ANN401  # typer names no public type for it
    """Let the help of a command show no type for flags, `--help` included, as they take no value, nor for arguments."""
    every = command.get_params

    def get_params(context: Any) -> Any:  # noqa: ANN401  # likewise
        parameters = every(context)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda **_: None
        return parameters

    command.get_params = get_params


def as_help(docstring: str) -> str:
    """Return a help text in which only paragraphs and examples begin lines, so that a terminal of any width wraps it."""
    explained, heading, examples = _cut(docstring)
    paragraphs = [" ".join(paragraph.split()) for paragraph in explained.strip().split("\n\n")]
    if heading:
        lines = (f"$ {line.strip().removeprefix('$ ')}" for line in examples.strip().splitlines())
        paragraphs.append("\n".join([heading, *lines]))
    return "\n\n".join(paragraphs)


def _cut(docstring: str) -> tuple[str, str, str]:
    found = _EXAMPLES.search(docstring)
    if found is None:
        return docstring, "", ""
    return docstring[: found.start()], found.group(), docstring[found.end() :]


def as_command(run: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    """Give a function that takes its options by name the ones that typer reads; an option that is not given is None or False."""
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False if get_args(each)[0] is bool else None, annotation=each)
        for name, each in options.items()
    ]
    run.__annotations__ = dict(options)
    vars(run)["__signature__"] = Signature(parameters)
    return run


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        answer(f"inbox-relay {version_of('inbox-relay')} on Python {platform.python_version()}")
        raise typer.Exit


def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command's name."""


def run(app: typer.Typer) -> None:
    """Run a command line. The text of a bug's exception may hold values, so it is escaped as everything is."""
    try:
        app()
    except BrokenPipeError:
        # The reader has seen enough, as in `relay tail | head`. Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception:  # noqa: BLE001  # whatever it is, it ends the program, as it would without this
        sys.stderr.write(visible_text(traceback.format_exc().rstrip()) + "\n")
        sys.exit(1)


@contextmanager
def _escaped() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(
            error, "format_message"
        ):  # click's exception, which typer has moved since the oldest that is allowed
            error.message = visible_text(error.message)  # type: ignore[attr-defined]  # as the line above says
        raise
