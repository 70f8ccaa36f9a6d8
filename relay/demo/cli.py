"""`relay demo`: the whole product with services to try it on, or one of those services alone."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from inbox.cli.terminal import FINDING, as_document, console, exit_on_error, fail, say

app = typer.Typer(
    help="Run the whole product with demo services, and watch webhooks become PATCHes.", add_completion=False
)

_SEEDS = 10_000
_SIGNALLED = 128
"""A shell adds the signal's number to it."""


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    *,
    once: Annotated[
        bool, typer.Option("--once", help="End when both services agree: 240 changes, failures, a killed relay.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where to keep the configuration, the database and the logs; new by default.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="URL of an empty database, instead of a SQLite file in the folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make the changes that this number stands for.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: the summary as JSON.")] = False,
) -> None:
    """Run the whole product with demo services, and watch webhooks become PATCHes.

    Starts an identity service, the receiver, the relay and a commercial service, changes some users, and shows what
    follows, until Ctrl-C. With --once it makes many changes, has calls fail and the relay killed, compares both
    services at the end, and exits 0 when they agree, or else 1 with what differs.

    Examples:
      relay demo
      relay demo --once --seed 7
      relay demo --once --database postgresql+psycopg://localhost/empty
    """
    if context.invoked_subcommand is not None:
        return
    if as_json and not once:
        fail("--json shows the summary of a run that ends: add --once")
    seed = secrets.randbelow(_SEEDS) if seed is None else seed
    if once:
        _once(folder, database, seed, as_json=as_json)
    else:
        _live(folder, database, seed)


def _live(folder: Path | None, database: str | None, seed: int) -> None:
    from relay.demo.live import run_live  # noqa: PLC0415  # listings need not load the services
    from relay.demo.processes import DemoError  # noqa: PLC0415

    try:
        with exit_on_error():
            run_live(console(), folder=folder, database_url=database, seed=seed)
    except DemoError as error:
        fail(str(error))


def _once(folder: Path | None, database: str | None, seed: int, *, as_json: bool) -> None:
    from relay.demo.happenings import Stopped  # noqa: PLC0415  # likewise
    from relay.demo.once import OnceRun  # noqa: PLC0415
    from relay.demo.processes import DemoError  # noqa: PLC0415
    from relay.demo.summary import show_summary  # noqa: PLC0415

    try:
        with exit_on_error():
            summary = OnceRun(console(stderr=as_json), seed).run(folder=folder, database_url=database)
    except DemoError as error:
        fail(str(error))
    except Stopped as stopped:
        say(f"stopped by {stopped} before the end; nothing was compared")
        raise typer.Exit(_SIGNALLED + stopped.number) from None
    if as_json:
        sys.stdout.write(as_document(summary.as_json()) + "\n")
    else:
        show_summary(console(), summary)
    if not summary.agree:
        raise typer.Exit(FINDING)


@app.command()
def identity(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
    webhook_url: Annotated[str | None, typer.Option(help="Where a webhook goes when something changes.")] = None,
    webhook_token: Annotated[str | None, typer.Option(help="Sent with it as X-Webhook-Token.")] = None,
    users: Annotated[int, typer.Option(help="Made-up users to begin with.")] = 20,
) -> None:
    """The demo identity service alone, with the Trivore Management API's paths; client `demo`, secret `demo`.

    Example:
      relay demo identity --port 8301 --webhook-url http://127.0.0.1:8000/webhooks/trivore
    """
    from relay.demo.identity import run_identity  # noqa: PLC0415  # the CLI need not load it otherwise

    headers = {"X-Webhook-Token": webhook_token} if webhook_token else None
    run_identity(port, webhook_url, webhook_headers=headers, users=users, on_ready=_say_where("the identity service"))


@app.command()
def commercial(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
    fail_share: Annotated[float, typer.Option(min=0, max=1, help="Share of calls answered 503.")] = 0.0,
) -> None:
    """The demo commercial service alone: contacts and teams found by external id; token `demo`.

    Example:
      relay demo commercial --port 8302 --fail-share 0.1
    """
    from relay.demo.commercial import run_commercial  # noqa: PLC0415  # likewise

    run_commercial(port, fail_share, on_ready=_say_where("the commercial service"))


def _say_where(what: str) -> Callable[[str], None]:
    return lambda url: say(f"{what} answers at {url}; Ctrl-C ends it")
