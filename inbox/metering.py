"""Counts the metrics of one process, in files that the exporter reads: prometheus-client's multiprocess mode.

The first process of a side makes a folder for them before it starts any other. Each process has its own files there, and
nothing is shared but the folder. They lie in memory where the system has a file system for that, and are written in full
before they are used: one that grew on a full disk would kill the process that writes to it (SIGBUS).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inbox.config_values import Address
from inbox.metrics import OFF, Meters, Metric

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that prometheus-client looks for, once, when it is imported."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it, for us alone
_PREFIX = "inbox-metrics-"
BYTES_AT_LEAST = 64 * 1024
BYTES_FOR_EACH_NAME = 16 * 1024
"""Of sources or routes: a series takes about 200 bytes, and a name has some tens of them."""

_ENDS_WITHIN_SECONDS = 5.0

_WRITTEN_AFTER_SECONDS = 0.25

_Series = tuple[str, tuple[str, ...]]
"""The name of a metric, and the values of its labels."""

_log = logging.getLogger(__name__)


def exporter_at(address: Address | None, uid: int = -1, gid: int = -1) -> Exporter | None:
    """What will serve the metrics of this process and those that it will start; None: nothing does, or can.

    Call it before prometheus-client is imported. The folder belongs to `uid` and `gid` when this process may give it away.
    """
    os.environ.pop(FOLDER, None)  # of another one, which has started this process
    if address is None:
        return None
    try:
        return Exporter(address, _begin(uid, gid))
    except OSError as error:  # no room, or no right: everything else goes on
        _log.error("metrics: nothing is counted: %a", error)
        return None


def _begin(uid: int, gid: int) -> Path:
    writable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    place = SHARED_MEMORY if writable else Path(tempfile.gettempdir())
    _clear(place)
    made = Path(tempfile.mkdtemp(prefix="inbox-new-", dir=place))
    if os.geteuid() == 0:
        os.chown(made, uid, gid)
    _lock(made)
    folder = made.rename(place / made.name.replace("inbox-new-", _PREFIX))
    os.environ[FOLDER] = str(folder)
    import prometheus_client  # noqa: F401, PLC0415  # here, so that processes that are forked later share its memory

    return folder


def _clear(place: Path) -> None:
    """Take away the folders of those who were killed: nobody has their locks any more."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> None:
    """Hold the folder as long as this process, or one that is forked from it, lives.

    Raises:
        OSError: somebody else holds it.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise


class Exporter:
    """The program that serves them (`inbox.exporter`), to the process that has made the folder."""

    def __init__(self, address: Address, folder: Path) -> None:
        self._command = [sys.executable, "-m", "inbox.exporter", address, str(folder)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self._let_go()
        try:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)  # noqa: S603  # our own Python, our own arguments
        except OSError as error:  # no memory, or too many processes: everything else goes on
            _log.error("metrics: can't be served now: %s", error)  # the traceback tells nothing more

    def stop(self) -> None:
        """End it. Those who count have ended."""
        self._let_go()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_WITHIN_SECONDS)
            process.kill()
            process.wait()


def counting(table: Sequence[Metric], names: int, *, gathering: bool = False) -> Meters:
    """What counts the metrics of `table` in this process; what counts nothing when it can't be done, which is told.

    `names` is how many sources or routes there are. With `gathering`, which is for a process that does everything in the
    event loop that runs now, it costs little, and what was counted last may wait for a moment, or until `write`.
    """
    try:
        folder = Path(os.environ[FOLDER])
        for prefix in ("counter", "histogram", "gauge_livemostrecent"):
            _write_in_full(folder / f"{prefix}_{os.getpid()}.db", BYTES_AT_LEAST + names * BYTES_FOR_EACH_NAME)
        return _Gathering(table) if gathering else _Counting(table)
    except (OSError, KeyError) as error:
        _log.error("metrics: this process counts nothing: %a", error)
        return OFF


def _write_in_full(file: Path, size: int) -> None:
    """Zeros are an empty file to prometheus-client. One that is there goes on: of a process that had the same number."""
    if not file.exists():
        new = file.with_suffix(".new")
        new.write_bytes(bytes(size))
        new.rename(file)


class _Counting(Meters):
    """Writes at once. Any thread may call it."""

    def __init__(self, table: Sequence[Metric]) -> None:
        self._metrics = {metric.name: _made(metric) for metric in table}
        self._series: dict[_Series, Any] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        self.of(metric.name, labels).inc(by)

    def count_each(self, metric: Metric, labels: Iterable[str]) -> None:
        for label, number in Counter(labels).items():
            self.of(metric.name, (label,)).inc(number)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        self.of(metric.name, labels).observe(value)

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        self.of(metric.name, labels).set(value)

    def of(self, name: str, labels: tuple[str, ...]) -> Any:  # noqa: ANN401  # prometheus-client's, of any kind
        """One series of a metric."""
        key = (name, labels)
        if key not in self._series:
            made = self._metrics[name]
            self._series[key] = made.labels(*labels) if labels else made
        return self._series[key]


class _Gathering(_Counting):
    """Gathers, and writes four times a second: each write takes 1 µs, and a request would make three.

    For an event loop; nobody else may call it.
    """

    def __init__(self, table: Sequence[Metric]) -> None:
        super().__init__(table)
        self._loop = asyncio.get_running_loop()
        self._written: asyncio.TimerHandle | None = None
        self._counts: dict[_Series, float] = {}
        self._observed: dict[_Series, list[float]] = {}
        """How many there are in each bucket, and last their sum."""

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        key = (metric.name, labels)
        self._counts[key] = self._counts.get(key, 0) + by
        self._later()

    def count_each(self, metric: Metric, labels: Iterable[str]) -> None:
        for label, number in Counter(labels).items():
            self.count(metric, label, by=number)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        key = (metric.name, labels)
        held = self._observed.get(key)
        if held is None:
            held = self._observed[key] = [0.0] * (len(metric.buckets) + 2)
        held[bisect_left(metric.buckets, value)] += 1
        held[-1] += value
        self._later()

    def write(self) -> None:
        self._written = None
        counts, self._counts = self._counts, {}
        observed, self._observed = self._observed, {}
        for (name, labels), number in counts.items():
            self.of(name, labels).inc(number)
        for (name, labels), (*buckets, total) in observed.items():
            series = self.of(name, labels)
            for position, number in enumerate(buckets):
                if number:
                    series._buckets[position].inc(number)  # noqa: SLF001  # it has no public way to add several
            series._sum.inc(total)  # noqa: SLF001  # likewise

    def _later(self) -> None:
        if self._written is None:
            self._written = self._loop.call_later(_WRITTEN_AFTER_SECONDS, self.write)


def _made(metric: Metric) -> Any:  # noqa: ANN401  # likewise
    from prometheus_client import Counter as Counted  # noqa: PLC0415  # it looks for the folder when it is imported
    from prometheus_client import Gauge, Histogram  # noqa: PLC0415

    if metric.kind == "histogram":
        return Histogram(metric.name, metric.help, metric.labels, registry=None, buckets=metric.buckets)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels, registry=None, multiprocess_mode="livemostrecent")
    return Counted(metric.name, metric.help, metric.labels, registry=None)
