"""`relay demo`: the whole product with services to try it on, or one of those services alone."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Run the whole product with demo services, and watch webhooks become PATCHes.", add_completion=False
)


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
    run_identity(port, webhook_url, webhook_headers=headers, users=users)


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

    run_commercial(port, fail_share)
