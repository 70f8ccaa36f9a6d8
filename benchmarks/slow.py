"""Cost of slow senders for an honest one: its 99th percentile beside a thousand of them, against the same alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer

from benchmarks.load import GENERATOR, Answers, send
from benchmarks.support import Kind, Side, configured, databases, machine, report, serving

WARM_UP_SECONDS = 1.0


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    senders: Annotated[int, typer.Option(min=1, max=4000, help="How many are slow.")] = 1000,
    connections: Annotated[int, typer.Option(min=1, max=256, help="Of the honest sender.")] = 8,
    seconds: Annotated[float, typer.Option(min=1, max=120, help="How long each side is measured in a round.")] = 15,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure how long webhooks take beside slow senders, through gunicorn, with the settings and the app it is served with."""
    beside, alone = Side(f"beside {senders} slow senders"), Side("alone", bar=2.0)
    rates: dict[str, list[int]] = {beside.name: [], alone.name: []}
    ended: list[str] = []
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(database))
        environment = stack.enter_context(configured(url))
        target = stack.enter_context(serving(environment)).target
        send(target, WARM_UP_SECONDS, connections)
        for _ in range(rounds):
            _measure(alone, rates, send(target, seconds, connections))
            with _slow(target, senders, ended):
                _measure(beside, rates, send(target, seconds, connections))
    notes = {
        "connections": connections,
        "seconds_each": seconds,
        "sender": GENERATOR,
        "accepted_per_second": rates,
        "slow_senders_ended": ended,
        **machine(),
    }
    title = f"Slow senders, {database}: p99 of a webhook that is sent as soon as the one before is answered"
    report(title, [beside, alone], notes, as_json=as_json, unit="ms")


def _measure(side: Side, rates: dict[str, list[int]], answers: Answers) -> None:
    if answers.refused or answers.lost:
        raise SystemExit(f"of {answers.answers} answers {answers.refused} were refusals, {answers.lost} went missing")
    side.rates.append(answers.p99_ms)
    rates[side.name].append(round(answers.rate))


@contextmanager
def _slow(target: str, senders: int, ended: list[str]) -> Iterator[None]:
    """As many slow senders as long as the block runs; how many were ended is added to `ended`."""
    command = [sys.executable, "-m", "benchmarks.slow_senders", target, str(senders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "READY\n":
                raise SystemExit("the slow senders do not get through")
            yield
        finally:
            process.terminate()
            ended.append(process.stdout.read().strip().removeprefix("ENDED "))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
