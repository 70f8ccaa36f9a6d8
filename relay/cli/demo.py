"""`relay demo`: the whole product with services to try it on, or one of those services alone."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from relay.cli.command_line import Commands
from relay.cli.terminal import FINDING, console, fail, say

app = typer.Typer(cls=Commands, add_completion=False)


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    *,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep everything running after the verdict, until Ctrl-C, to look around.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="An empty folder that keeps the configuration, the database and the logs; else they go."),
    ] = None,
) -> None:
    """Run the whole product with demo services, and watch webhooks become calls of another system.

    Starts an identity service, the receiver, the relay, its page and a commercial service, changes some users, kills the
    relay over its work, and shows what follows. At the end, after a minute, it compares both services, and exits 0 when
    they agree, or else 1 with what differs.

    Examples:
      relay demo
      relay demo --stay
    """
    if context.invoked_subcommand is not None:
        return
    from relay.demo.run import DemoError, run_demo

    try:
        is_well = run_demo(console(), folder, stay=stay)
    except (DemoError, OSError) as error:
        fail(str(error))
    if not is_well:
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
    from relay.demo.scenario import sample_user
    from relay.demo.services import USER, IdentityService, WebhookSender

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
    from relay.demo.services import CommercialService

    _serve(CommercialService(fail_share=fail_share).app, port, "the commercial service")


def _serve(app: Any, port: int, name: str) -> None:  # noqa: ANN401  # a Falcon app, which other commands need not load
    from relay.demo.services import served

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt), served(app, port) as url:
            say(f"{name} answers at {url}; Ctrl-C ends it")
            threading.Event().wait()
    except OSError as error:
        fail(f"{name} can't listen on 127.0.0.1:{port}: {error.strerror or error}; name another --port")
