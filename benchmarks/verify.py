"""`relay verify` and `relay rebuild` over many deliveries: how long they take, and how much memory they need.

Nine of ten deliveries have ended after one attempt, every tenth of these after two; the others are open. For the rebuild
the work table is emptied first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.support import Kind, configured, count_rows, databases, machine
from inbox.db import engine as engines
from inbox.db.dialect import POSTGRES

BAR_MIB = 150

_MOMENT = "2026-01-01 00:00:00.000000Z"
_BODY = """{{"id": "u' || n || '", "entityType": "USER", "eventType": "UPDATE", "timestamp": "2026-01-01T00:00:00Z"}}"""
_CALLS = (
    '{{"did": "forwarded", "calls": [{{"step": "forward", "method": "POST", "url": "https://audit.example.com/hook",'
    ' "sent": "answered", "milliseconds": 20.5, "status": 200}}]}}'
)
_FAILED = '{{"error_class": "server_error", "error": "forward answered 503", "due_at": "2026-01-01 00:00:05.000000Z"}}'
FILL = (
    f"""
INSERT INTO inbox (source, dedup_key, entity_type, entity_id, event_type, action, occurred_at, received_at, routes,
                   content_type, body_bytes, body_sha256)
SELECT 'trivore', 'key ' || n, 'USER', 'u' || n, 'UPDATE', 'update', '{_MOMENT}', '{_MOMENT}', {{routes}},
       'application/json', length('{_BODY}'), CAST('00' AS {{bytes}})
FROM {{numbers}}
""",
    f"INSERT INTO inbox_payload (seq, headers, body) SELECT n, '{{{{}}}}', CAST('{_BODY}' AS {{bytes}}) FROM {{numbers}}",
    f"""
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
SELECT '{_MOMENT}', n, 'everything', 'attempt_failed', 'ready', 1, '{_FAILED}' FROM {{numbers}} WHERE n % 10 = 1
""",
    f"""
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)
SELECT '{_MOMENT}', n, 'everything', 'delivered', 'ended', CASE WHEN n % 10 = 1 THEN 2 ELSE 1 END, '{_CALLS}'
FROM {{numbers}} WHERE n % 10 <> 0
""",
    f"""
INSERT INTO lane (route, lane, occurred_at, seq)
SELECT 'everything', 'USER|u' || n, '{_MOMENT}', n FROM {{numbers}} WHERE n % 10 <> 0
""",
    f"""
INSERT INTO open_delivery (seq, route, lane, occurred_at, state, due_at)
SELECT n, 'everything', 'USER|u' || n, '{_MOMENT}', 'ready', '{_MOMENT}' FROM {{numbers}} WHERE n % 10 = 0
""",
)


class Run(msgspec.Struct):
    """One run of a command."""

    command: str
    deliveries: int
    seconds: float
    peak_mib: float


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    deliveries: Annotated[int, typer.Option(min=1000, max=10_000_000, help="How many.")] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure `relay verify` and `relay rebuild`, each as a process of its own."""
    with databases(database) as (url,), configured(url) as environment:
        fill(url, deliveries)
        runs = [run(deliveries, environment, "verify")]
        _empty(url)
        runs.append(run(deliveries, environment, "rebuild"))
        if (restored := count_rows(url, "open_delivery")) != deliveries // 10:
            raise SystemExit(f"{restored} of {deliveries // 10} open deliveries came back")
        runs.append(run(deliveries, environment, "verify"))
    if as_json:
        print(
            json.dumps(
                {"runs": [msgspec.structs.asdict(one) for one in runs], "bar_mib": BAR_MIB, **machine()}, indent=2
            )
        )
        return
    table = Table("command", "deliveries", "seconds", "deliveries/s", "peak MiB", f"bar: {BAR_MIB} MiB", box=None)
    for one in runs:
        rate = f"{one.deliveries / one.seconds:,.0f}"
        met = "met" if one.peak_mib <= BAR_MIB else "missed"
        table.add_row(one.command, f"{one.deliveries:,}", f"{one.seconds:.1f}", rate, f"{one.peak_mib:.0f}", met)
    Console().print(table)


def fill(url: str, deliveries: int) -> None:
    """So many events and what became of them."""
    engine = engines.connect(url, application="benchmarks")
    is_postgres = engine.dialect.name == POSTGRES
    numbers = (
        f"generate_series(1, {deliveries}) AS n"
        if is_postgres
        else f"(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {deliveries}) SELECT n FROM c)"
    )
    fragments = {
        "numbers": numbers,
        "routes": "ARRAY['everything']" if is_postgres else "'[\"everything\"]'",
        "bytes": "bytea" if is_postgres else "blob",
    }
    with engine.begin() as connection:
        for statement in FILL:
            filled = statement.format(**fragments)
            if is_postgres:  # SELECT gives texts, where VALUES would be of the column's type
                filled = filled.replace(f"'{_MOMENT}'", f"TIMESTAMPTZ '{_MOMENT}'").replace("}' FROM", "}'::jsonb FROM")
                filled = filled.replace("}'\nFROM", "}'::jsonb\nFROM")
            connection.execute(text(filled.replace(":", "\\:").replace("\\:\\:", "\\:\\:")))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE" if is_postgres else "ANALYZE"))
    engine.dispose()


def _empty(url: str) -> None:
    engine = engines.connect(url, application="benchmarks")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery"))
    engine.dispose()


def run(deliveries: int, environment: Mapping[str, str], *command: str) -> Run:
    """`relay` with this command, as a process of its own, over so many deliveries."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "relay", *command], stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        output.seek(0)
        said = output.read().decode().splitlines()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"relay {command[0]} ended with {process.returncode}: {said[-1:]}")
    scale = 1024 if sys.platform == "linux" else 1024 * 1024  # getrusage(2): kilobytes on Linux, bytes elsewhere
    return Run(command[0], deliveries, round(seconds, 1), round(usage.ru_maxrss / scale, 1))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
