"""The operator's page over millions of events: how long each screen takes, and what open browsers cost the database.

python -m benchmarks.web --database postgres --events 5000000 --open 1000000
python -m benchmarks.web --browsers 20
"""

from __future__ import annotations

import json
import math
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import requests
import typer
from falcon.asgi import Request, Response
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event

from benchmarks.support import Kind, configured, databases, machine
from benchmarks.web_rows import ROUTES, Filled, fill
from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.loader.load import read_config
from relay.accounts import Actor
from relay.demo.services import served
from relay.web.app import create_app
from relay.web.reading import Readers

BAR_MS, PLAN_BAR_MS, STATEMENTS_BAR = 300.0, 1500.0, 50.0
"""Longest time of a screen, and of the plan of an act; statements a second of open pages."""
_WARMED_SECONDS, _WATCHED_SECONDS = 10.0, 30.0
_REFRESHED_SECONDS = 3.0
"""As the page's script does."""
_SIZES = {Kind.POSTGRES: (5_000_000, 1_000_000), Kind.SQLITE: (1_000_000, 200_000)}


class Asked(msgspec.Struct):
    """A page, and the times of its answers."""

    path: str
    statements: int
    milliseconds: list[float]
    computing: list[float]
    """Milliseconds of processor time of this process: on SQLite all the work, whatever else the machine does."""
    status: int = 200
    """HTTP status of the last answer."""

    @property
    def bar(self) -> float:
        """Return the longest time that is good enough."""
        return PLAN_BAR_MS if self.path.startswith("/acts/") else BAR_MS

    @property
    def p95(self) -> float:
        """Return the time that 95 % of the answers took at most."""
        return _p95(self.milliseconds)


def _p95(milliseconds: list[float]) -> float:
    return sorted(milliseconds)[math.ceil(len(milliseconds) * 0.95) - 1]


class _Anybody:
    """Access for everybody, as an operator."""

    async def process_request(self, req: Request, _resp: Response) -> None:
        req.context.actor = Actor("benchmark", "operator")


class _Statements:
    """Statements that this process has sent to any database."""

    def __init__(self) -> None:
        self.number = 0
        event.listen(Engine, "before_cursor_execute", self._count)

    def _count(self, *_: object) -> None:
        self.number += 1


def main(  # options of a command
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    events: Annotated[int | None, typer.Option(min=1000, help="Stored events; 5 M, and 1 M on SQLite.")] = None,
    opened: Annotated[
        int | None, typer.Option("--open", min=500, help="Open deliveries; 1 M, and 200,000 on SQLite.")
    ] = None,
    times: Annotated[int, typer.Option(min=1, max=1000, help="How often each page is asked for.")] = 20,
    browsers: Annotated[int, typer.Option(min=0, max=100, help="Also count the statements of so many pages.")] = 0,
    only: Annotated[str, typer.Option(help="Only pages whose path contains this.")] = "",
    filled: Annotated[
        str | None, typer.Option(help="URL of a database that was filled before, with the same figures.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Ask for every screen, with filters that match much, little and nothing. Exits with 1 beyond a bar."""
    most, most_open = _SIZES[database]
    size = Filled(events or most, opened or most_open)
    with ExitStack() as stack:
        url = filled or stack.enter_context(_filled(database, size))
        page = stack.enter_context(_page(url))
        counted = _Statements()
        asked = [_ask(page, path, times, counted) for path in pages(size) if only in path]
        per_second = _watch(page, size, browsers, counted) if browsers else None
    _report(
        asked, per_second, f"The page, {database.value}, {size.events:,} events, {size.open:,} open", as_json=as_json
    )
    if any(each.p95 > each.bar or each.status != HTTPStatus.OK for each in asked) or (per_second or 0) > STATEMENTS_BAR:
        raise SystemExit(1)


def pages(size: Filled) -> Iterator[str]:
    """Yield the path of every screen, with telling filters."""
    yield from ("/", "/?routes=all", "/dead", "/gates", "/rejected", "/commands", "/alerts")
    yield from (f"/deliveries?{query}" for query in _queries(size))
    for seq in (1, size.only, size.failed_alone, size.events - 1, size.events // 10 * 10):
        yield f"/events/{seq}"
    for name in ("large", f"u{size.events // 10 - 20}", "u4"):
        yield f"/entities/trivore/USER/{name}"
    yield f"/entities/trivore/USER/large?before={size.events // 2}&limit=200"
    yield from (
        f"/dead?{query}"
        for query in ("route=everything", "route=mirror", "cause=server_error", "cause=none", "since=1h")
    )
    yield from (
        "/gates?name=u199",
        "/gates?kind=entity",
        "/commands/20000",
        "/commands?kind=erase",
        "/commands?state=failed",
    )
    yield from (
        f"/rejected?{query}"
        for query in ("source=nobody", "cause=none", "error=nothing", "since=1h", "until=2001-01-01")
    )
    yield from ("/alerts?kind=retired", "/alerts?subject=nothing", "/alerts?before=100")
    yield from (f"/acts/{plan}" for plan in _plans(size))


def _plans(size: Filled) -> Iterator[str]:
    """Yield plans of every kind of act, over much and over little."""
    yield from ("replay", "replay?route=everything", f"replay?route=invoices&error={quote('kind 7')}")
    yield from (f"replay?route={route}&backfill=true" for route in ("everything", "mirror", "rarely"))
    yield from (f"{act}?entity_type=USER&entity_id={name}" for act in ("replay", "cancel") for name in ("large", "u4"))
    yield from (f"replay?seq={size.only}", "retry?route=everything", "unblock?route=everything")
    yield from ("cancel?error=needle", "cancel?source=rare", "cancel?route=rarely")
    yield from ("prune", "readmit", "readmit?error=nothing", "pause?destination=downstream", "resume?source=trivore")
    yield from (f"erase?source=trivore&entity_type=USER&entity_id={name}" for name in ("large", "u4", "nobody"))


def _queries(size: Filled) -> Iterator[str]:
    """Yield conditions on deliveries: of each kind one that matches much, one that matches one of all, one that matches none."""
    yield "limit=50"
    states = "received waiting ready retrying in_flight blocked dead delivered unchanged superseded skipped cancelled unrouted"
    for state in states.split():
        yield f"state={state}"
    yield from (
        "route=everything",
        "route=mirror",
        "route=rarely",
        "source=billing",
        "source=rare",
        "destination=downstream",
    )
    yield from (
        "event_type=ONLY",
        "event_type=NONE",
        "type=USER",
        "type=NONE",
        "status=503",
        "status=418",
        "status=200",
    )
    yield from ("error=503", "error=needle", "error=nothing", "error=refused&state=dead", "error=nothing&state=blocked")
    yield from (
        "entity=USER/large",
        "entity=USER/nobody",
        "entity=USER/large&state=dead",
        "entity=USER/large&status=418",
    )
    yield from ("entity=USER/large&route=rarely", "entity=USER/large&error=nothing", "source=rare&entity=USER/large")
    yield from ("since=1h", "until=29d", "since=20d&until=19d", "since=20d&until=19d&state=dead", "until=2001-01-01")
    yield from (
        "state=dead&route=mirror",
        "state=waiting&route=rarely",
        "state=dead&event_type=ONLY",
        "state=waiting&source=rare",
    )
    yield from ("state=received&route=everything", "state=received&route=rarely", "state=retrying&error=nothing")
    yield from ("route=rarely&error=nothing", "route=rarely&status=503", "route=mirror&state=cancelled", "limit=200")
    yield from (
        f"before={size.events // 2}&limit=200",
        "before=2",
        f"before={size.events // 2}&state=cancelled&route=mirror",
    )
    yield f"before={size.events // 2}&state=dead&error=nothing"


@contextmanager
def _filled(database: Kind, size: Filled) -> Iterator[str]:
    with databases(database) as (url,):
        engine = engines.connect(url, application="benchmarks")
        fill(engine, size, SystemClock().now())
        engine.dispose()
        yield url


@contextmanager
def _page(url: str) -> Iterator[str]:
    """Serve the page in this process, so that its statements can be counted."""
    with configured(url, more=ROUTES) as environment:
        config: Config = read_config(Path(environment["INBOX_CONFIG"]), environment)
    clock = SystemClock()
    readers = Readers(config, clock)
    try:
        with served(create_app(readers, clock, _Anybody())) as served_at:
            yield served_at
    finally:
        readers.close()


def _ask(page: str, path: str, times: int, counted: _Statements) -> Asked:
    asked = Asked(path, 0, [], [])
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(times):
            statements, began, computed = counted.number, time.monotonic(), time.process_time()
            answer = session.get(page + path, timeout=60)
            asked.milliseconds.append((time.monotonic() - began) * 1000)
            asked.computing.append((time.process_time() - computed) * 1000)
            asked.statements = max(asked.statements, counted.number - statements)
            asked.status = answer.status_code
    return asked


def _watch(page: str, size: Filled, browsers: int, counted: _Statements) -> float:
    """Open so many different pages, and return the statements a second that their refresh takes."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=_listen, args=(page + path, stop), daemon=True)
        for path in islice(_live_pages(size), browsers)
    ]
    for thread in threads:
        thread.start()
    time.sleep(_WARMED_SECONDS)
    before, began = counted.number, time.monotonic()
    time.sleep(_WATCHED_SECONDS)
    per_second = (counted.number - before) / (time.monotonic() - began)
    stop.set()
    for thread in threads:
        thread.join()
    return per_second


def _live_pages(size: Filled) -> Iterator[str]:
    """Yield a page of every screen that refreshes itself, and then lists and events without end."""
    yield from ("/", "/?routes=all", "/rejected", "/commands", "/commands/20000", "/alerts")
    yield from ("/entities/trivore/USER/large", "/deliveries", "/deliveries?error=nothing", "/events/1")
    for seq in count(size.events, -1):
        yield f"/deliveries?state=dead&before={seq}" if seq % 4 else f"/events/{seq}"


def _listen(url: str, stop: threading.Event) -> None:
    with requests.Session() as session, suppress(requests.RequestException):
        session.trust_env = False
        while not stop.wait(_REFRESHED_SECONDS):
            session.get(url, headers={"X-Refresh": "1"}, timeout=60)


def _report(asked: list[Asked], per_second: float | None, title: str, *, as_json: bool) -> None:
    rows: list[Mapping[str, Any]] = [
        {
            "page": each.path,
            "p50_ms": round(statistics.median(each.milliseconds), 1),
            "p95_ms": round(each.p95, 1),
            "worst_ms": round(max(each.milliseconds), 1),
            "computing_p95_ms": round(_p95(each.computing), 1),
            "statements": each.statements,
            "status": each.status,
        }
        for each in sorted(asked, key=lambda each: -each.p95)
    ]
    notes = {"statements a second of open pages": None if per_second is None else round(per_second, 2), **machine()}
    if as_json:
        print(
            json.dumps({"title": title, "bar_ms": BAR_MS, "plan_bar_ms": PLAN_BAR_MS, "pages": rows, **notes}, indent=2)
        )
        return
    columns = ("page", "p50 ms", "p95 ms", "worst ms", "computing p95 ms", "statements", "status")
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = Console(soft_wrap=True)
    console.print(table, highlight=False)
    for name, value in notes.items():
        console.print(f"{name}: {value}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
