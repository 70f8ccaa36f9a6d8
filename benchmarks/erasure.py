"""`inbox erase` of an entity with very many events, beside light intake and deliveries: whom it holds up, and for how long.

The entity's events have ended, each delivered on one route. A receiver, a relay and a sender work beside it, first without the
erasure, then beside it. The order lock, which every step of an erasure takes, is asked for all the time. All of it runs on
127.0.0.1; the downstream answers at once.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer
from sqlalchemy import Engine, text

from benchmarks.open_transaction import picked_up, relay, sending
from benchmarks.support import Kind, Side, configured, databases, downstream, machine, repeating, report, serving
from benchmarks.verify import fill
from inbox.clock import SystemClock
from inbox.db import engine as engines

ENTITY = "erased"
_ASK_EVERY = 0.02
_MOMENT = "2026-01-01 00:00:00.000000Z"
_EVENTS = (
    """
INSERT INTO inbox (source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT 'trivore', 'erased ' || n, 'USER', :entity, 'UPDATE', 'update', :at, :at, '{everything}', 'application/json', 100, ''
FROM generate_series(1, :events) AS n
""",
    """
INSERT INTO inbox_payload (seq, headers, body)
SELECT seq, '{}', convert_to(repeat(md5(CAST(seq AS text)), 3), 'UTF8') FROM inbox WHERE entity_id = :entity
""",
    """
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
SELECT :at, seq, 'everything', 'delivered', 'ended', 1,
       jsonb_build_object('did', 'forwarded', 'calls', jsonb_build_array(jsonb_build_object('url', 'https://crm/' || :entity)))
FROM inbox WHERE entity_id = :entity
""",
    """
INSERT INTO lane (route, lane, occurred_at, seq)
SELECT 'everything', 'USER|' || :entity, occurred_at, max(seq) FROM inbox WHERE entity_id = :entity GROUP BY occurred_at
""",
)


def main(
    *,
    events: Annotated[int, typer.Option(min=100, max=10_000_000, help="Events of the entity.")] = 1_000_000,
    others: Annotated[int, typer.Option(min=1000, max=10_000_000, help="Events of others, most delivered.")] = 100_000,
    rate: Annotated[int, typer.Option(min=1, max=1000, help="Webhooks per second.")] = 50,
    alone: Annotated[float, typer.Option(min=1, max=600, help="Seconds without the erasure.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure an erasure on Postgres beside intake and deliveries, and what they wait without it."""
    beside, without = Side("beside the erasure"), Side("without")
    with ExitStack() as stack:
        (url,) = stack.enter_context(databases(Kind.POSTGRES))
        engine = engines.connect(url, application="benchmarks")
        stack.callback(engine.dispose)
        fill(url, others)
        _fill(engine, events)
        environment = stack.enter_context(configured(url, f"{stack.enter_context(downstream())}/hook"))
        receiver = stack.enter_context(serving(environment))
        stack.enter_context(relay(environment))
        _wait_until_delivered(engine)
        found: dict[str, object] = {}
        with sending(receiver.port, rate) as requests, _asking(engine) as asked:
            time.sleep(min(alone, 10))  # the first ones find cold caches
            for side in (without, beside):
                requests.clear()
                asked.clear()
                since = began = SystemClock().now()
                if side is beside:
                    erase(environment)
                    seconds = (SystemClock().now() - began).total_seconds()
                    found["erased"] = f"{events:,} events in {seconds:.0f} s"
                else:
                    time.sleep(alone)
                side.rates.append(1000 * statistics.quantiles(requests, n=100)[98])
                found[f"intake {side.name}"] = waits(requests)
                found[f"order lock {side.name}"] = waits(asked)
                try:
                    found[f"pick-up {side.name}"] = picked_up(engine, {"since": since, "until": SystemClock().now()})
                except SystemExit as late:
                    found[f"pick-up {side.name}"] = str(late)  # the waits of the others are worth reading all the same
    report("Intake beside an erasure, p99", [beside, without], found | machine(), as_json=as_json, unit="ms")


def erase(environment: dict[str, str]) -> None:
    """Run the command."""
    command = [sys.executable, "-c", "from relay.cli.inbox import main; main()", "erase", "--source", "trivore"]
    options = ["--entity", f"USER/{ENTITY}", "--reason", "benchmark", "--yes", "--json"]
    done = subprocess.run([*command, *options], env=environment, stdout=subprocess.PIPE, check=True)
    if json.loads(done.stdout)["erased"] == 0:
        raise SystemExit("nothing was erased")


def waits(seconds: Sequence[float]) -> str:
    """Say how long they took, in milliseconds."""
    parts = statistics.quantiles(seconds, n=100)
    return f"p50 {1000 * parts[49]:.1f} ms, p99 {1000 * parts[98]:.1f} ms, longest {1000 * max(seconds):.0f} ms of {len(seconds):,}"


def _fill(engine: Engine, events: int) -> None:
    with engine.begin() as connection:
        for statement in _EVENTS:
            connection.execute(text(statement), {"events": events, "entity": ENTITY, "at": _MOMENT})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _wait_until_delivered(engine: Engine) -> None:
    while True:
        with engine.connect() as connection:
            if not connection.execute(text("SELECT count(*) FROM open_delivery")).scalar_one():
                return
        time.sleep(1)


@contextmanager
def _asking(engine: Engine) -> Iterator[list[float]]:
    """Ask for the order lock all the time; gives the seconds of each wait."""
    took: list[float] = []

    def ask() -> None:
        with engine.connect() as connection:
            began = time.monotonic()
            connection.execute(text("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE"))
            took.append(time.monotonic() - began)

    with repeating(ask, _ASK_EVERY):
        yield took


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
