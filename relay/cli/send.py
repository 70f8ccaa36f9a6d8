"""`inbox send`: sends one webhook as a source would, signed with that source's own secret, to try a configuration."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from relay.cli.options import TIME, parse_entity
from relay.cli.output import FINDING, answer, exit_on_error, fail


def send(
    source: Annotated[str, typer.Argument(help="The name of a source.")],
    *,
    entity: Annotated[str, typer.Option(help="What changed, as TYPE/ID.")] = "USER/IDNUMBER1234",
    event: Annotated[str, typer.Option(help="What happened to it.")] = "UPDATE",
    at: Annotated[datetime | None, typer.Option(help="When; now unless given. UTC.", **TIME)] = None,
    body: Annotated[
        Path | None, typer.Option(help="A file with the body, instead of a made-up one.", dir_okay=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help='A header of the provider\'s, such as "X-GitHub-Event: push"; repeatable.')
    ] = None,
    url: Annotated[str, typer.Option(help="Where the receiver is.")] = "http://127.0.0.1:8000",
) -> None:
    """Send a webhook as the source's provider would, signed with the source's secret, and show the answer.

    Exits 1 when it is not accepted.

    Examples:
      inbox send trivore
      inbox send trivore --entity GROUP/g1 --event DELETE
      inbox send github --entity issue/1 --event issues.opened
      inbox send acme --body order.json --header "X-Acme-Event: order.updated"
    """
    from inbox.clock import SystemClock
    from inbox.loader.load import read_config
    from inbox.sources.base import Sample
    from relay.cli import provider

    entity_type, entity_id = parse_entity(entity)
    given = dict(_header(each) for each in header or [])
    with exit_on_error():
        moment = at or SystemClock().now()
        config = read_config()
        if body is not None:
            try:
                sample = Sample(body.read_bytes(), given)
            except OSError as error:
                fail(f"can't read {body}: {error.strerror}")
        else:
            made = provider.sample_of(
                config, source, entity_type=entity_type or "", entity_id=entity_id or "", event_type=event, at=moment
            )
            sample = Sample(made.body, {**made.headers, **given}, made.message_id)
        reply = provider.send(config, source, url, sample, moment)
    answer(f"{reply.status} {reply.body}")
    if not reply.accepted:
        raise typer.Exit(FINDING)


def _header(given: str) -> tuple[str, str]:
    name, colon, value = given.partition(":")
    if not colon or not name.strip():
        fail(f"--header must be NAME: VALUE, not {given!r}")
    return name.strip(), value.strip()
