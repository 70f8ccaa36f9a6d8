"""`relay demo`: the whole product with services to try it on, or one of those services alone."""

from __future__ import annotations

import secrets
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from inbox.cli.command_line import Commands
from inbox.cli.terminal import FINDING, as_document, console, exit_on_error, fail, say

app = typer.Typer(cls=Commands, add_completion=False)

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
        Path | None,
        typer.Option(
            help="Where to keep the configuration, the database and the logs; else they are removed at the end."
        ),
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="URL of an empty database, instead of a SQLite file in the folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make the changes that this number stands for.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: the summary as JSON.")] = False,
) -> None:
    """Run the whole product with demo services, and watch webhooks become calls of another system.

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
    from relay.demo.events import Stopped  # noqa: PLC0415  # other commands need not load the services
    from relay.demo.processes import DemoError  # noqa: PLC0415
    from relay.demo.run import run_live, run_once  # noqa: PLC0415
    from relay.demo.screen import show_summary  # noqa: PLC0415

    try:
        with exit_on_error():
            if not once:
                run_live(console(), seed, folder, database)
                return
            summary = run_once(console(stderr=as_json), seed, folder, database)
    except DemoError as error:
        fail(str(error))
    except Stopped as stopped:
        say(f"stopped by {stopped} before the end; nothing was compared")
        raise typer.Exit(_SIGNALLED + stopped.number) from None
    if as_json:
        sys.stdout.write(as_document(summary) + "\n")
    else:
        show_summary(console(), summary)
    if not summary["agree"]:
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
    from relay.demo.identity import USER, IdentityService  # noqa: PLC0415  # likewise
    from relay.demo.scenario import sample_user  # noqa: PLC0415
    from relay.demo.webhooks import WebhookSender  # noqa: PLC0415

    webhooks = WebhookSender(headers={"X-Webhook-Token": webhook_token} if webhook_token else None)
    service = IdentityService(webhooks)
    for number in range(users):
        service.create(USER, sample_user(number))
    webhooks.url = webhook_url
    _serve(service.app, port, "the identity service")
    webhooks.close()


@app.command()
def commercial(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
    fail_share: Annotated[float, typer.Option(min=0, max=1, help="Share of calls answered 503.")] = 0.0,
) -> None:
    """The demo commercial service alone: contacts and teams found by external id; token `demo`.

    Example:
      relay demo commercial --port 8302 --fail-share 0.1
    """
    from relay.demo.commercial import CommercialService  # noqa: PLC0415  # likewise

    _serve(CommercialService(fail_share=fail_share).app, port, "the commercial service")


def _serve(app: Any, port: int, name: str) -> None:  # noqa: ANN401  # a Falcon app, which other commands need not load
    from relay.demo.events import DemoEvents, Stopped  # noqa: PLC0415  # likewise
    from relay.demo.web import served  # noqa: PLC0415

    events = DemoEvents(lambda _: None)
    try:
        with events.stopping(), served(app, port) as url, suppress(Stopped):
            say(f"{name} answers at {url}; Ctrl-C ends it")
            events.wait(threading.TIMEOUT_MAX)
    except OSError as error:
        fail(f"{name} can't listen on 127.0.0.1:{port}: {error.strerror or error}; name another --port")
