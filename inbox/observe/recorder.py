"""Count the metrics of one process, and write them to the exporter through a pipe.

A program's first process creates the pipe before it starts the others, and each has a writing end. Without files or
folders, other users can't interfere, memory can't fill up, and a killed process leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

from inbox.observe.logs import Format, fields
from inbox.observe.metrics import OFF, Meters, Metric

PIPE = "INBOX_METRICS_PIPE"
"""Environment variable with the pipe's writing end, for child processes."""

WRITTEN_AFTER_SECONDS = 0.25
"""Seconds for which counts are collected before they are written."""
REWRITE_EVERY_SECONDS = 15.0
"""Seconds after which all series are rewritten, even unchanged ones: a new exporter may have replaced a dead one."""
_EXPORTER_ENDS_WITHIN_SECONDS = 5.0
_LAST_WRITE_WITHIN_SECONDS = 1.0


class Line(msgspec.Struct, frozen=True, array_like=True):
    """A series, as a process reports it."""

    name: str
    """Name of the metric."""
    labels: tuple[str, ...]
    """Values of its labels."""
    values: tuple[float, ...]
    """For a counter, the number to add; for a histogram, the number for each bucket, and the sum; for a gauge, its
    value and the time by the monotonic clock, which all processes share."""


_log = logging.getLogger(__name__)


def exporter_at(
    place: tuple[str, int] | None, form: Format = "text", uid: int | None = None, gid: int | None = None
) -> ExporterProcess | None:
    """Create the exporter for this process and its children, serving at this host and port; None without `place`.

    If this process runs as root, the exporter changes to `uid` and `gid`.
    """
    os.environ.pop(PIPE, None)  # left by a parent process
    if place is None:
        return None
    return ExporterProcess(place, form, os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid)


class ExporterProcess:
    """Start and stop the program that serves metrics (`inbox.observe.exporter`), and own the pipe to it."""

    def __init__(self, place: tuple[str, int], form: Format, uid: int, gid: int) -> None:
        arguments = [*map(str, (*place, uid, gid)), form]
        self._command = [sys.executable, "-m", "inbox.observe.exporter", *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        # This process keeps the reading end too, so that data written without an exporter waits for the next one.
        self._reading, self.pipe = os.pipe()
        os.environ[PIPE] = str(self.pipe)

    def ensure(self) -> None:
        """Start the program unless it is running."""
        if self._process is not None and self._process.poll() is None:
            return
        try:
            self._process = subprocess.Popen(self._command, stdin=self._reading)  # noqa: S603  # our own Python and arguments
        except OSError as error:  # no memory, or too many processes; everything else continues
            _log.error(
                "metrics: can't be served now: %s", error, extra=fields("metrics_trouble")
            )  # the traceback adds nothing

    def stop(self) -> None:
        """Stop the program by closing the pipe; the counting processes have closed their ends."""
        os.close(self.pipe)
        os.environ.pop(PIPE, None)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXPORTER_ENDS_WITHIN_SECONDS)
            self._process.kill()
            self._process.wait()
        os.close(self._reading)


def make_recorder(table: Sequence[Metric]) -> Meters:
    """Create this process's recorder of the metrics in `table`; on failure log an error and return `OFF`."""
    try:
        pipe = int(os.environ[PIPE])
        os.set_inheritable(pipe, False)  # inherited; in a grandchild, it would keep the exporter running
        return Recorder(table, os.dup(pipe))
    except (OSError, KeyError, ValueError) as error:
        _log.error("metrics: this process counts nothing: %a", error, extra=fields("metrics_trouble"))
        return OFF


class Recorder(Meters):
    """Sum up the counts of all threads, and write them from its own thread, so that counting makes no system call.

    While the pipe is not read, that thread waits, and the numbers add up here in constant memory.
    """

    def __init__(self, table: Sequence[Metric], pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        """All series: the value of a gauge, the unwritten increments of others."""
        self._changed: set[tuple[str, tuple[str, ...]]] = set()
        self._gauges = {metric.name for metric in table if metric.kind == "gauge"}
        self._wanted, self._ended = threading.Event(), threading.Event()
        for metric in table:
            if not metric.labels and metric.kind != "gauge":
                with self._lock:
                    self._series(metric, ())
        self._thread = threading.Thread(target=self._keep_writing, name="metrics", daemon=True)
        self._thread.start()

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._series(metric, labels)[0] += by

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value to a histogram. A value equal to a limit belongs to the lower bucket (`le`)."""
        place = bisect_left(metric.buckets, value)
        with self._lock:
            held = self._series(metric, labels)
            held[place] += 1
            held[-1] += value

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._series(metric, labels)[:] = value, time.monotonic()

    def close(self) -> None:
        """Write the rest, and wait at most a second for the exporter to read it."""
        self._ended.set()
        self._wanted.set()
        self._thread.join(_LAST_WRITE_WITHIN_SECONDS)

    def _series(self, metric: Metric, labels: tuple[str, ...]) -> list[float]:
        """Return the mutable values of one series. The caller holds the lock."""
        key = (metric.name, labels)
        held = self._values.get(key)
        if held is None:
            held = self._values[key] = [0.0] * metric.numbers
        if not self._changed:
            self._wanted.set()
        self._changed.add(key)
        return held

    def _keep_writing(self) -> None:
        again = time.monotonic() + REWRITE_EVERY_SECONDS
        try:
            ending = False
            while not ending:
                self._wanted.wait(max(again - time.monotonic(), 0))
                ending = self._ended.wait(WRITTEN_AFTER_SECONDS)
                everything = time.monotonic() >= again
                if everything:
                    again = time.monotonic() + REWRITE_EVERY_SECONDS
                self._write(self._take(everything=everything))
        except OSError as error:  # neither an exporter nor its parent is left
            _log.error("metrics: this process's counts are lost: %s", error, extra=fields("metrics_trouble"))
        finally:
            os.close(self._pipe)

    def _take(self, *, everything: bool) -> list[Line]:
        """Return the lines to write, and reset counters and histograms."""
        with self._lock:
            keys, self._changed = set(self._values) if everything else self._changed, set()
            self._wanted.clear()
            lines = [Line(*key, tuple(self._values[key])) for key in keys]
            for key in keys:
                if key[0] not in self._gauges:
                    self._values[key] = [0.0] * len(self._values[key])
        return lines

    def _write(self, lines: Iterable[Line]) -> None:
        """Write whole lines, up to PIPE_BUF at once: POSIX makes such writes atomic."""
        held = b""
        for line in lines:
            encoded = msgspec.json.encode(line) + b"\n"
            if len(held) + len(encoded) > select.PIPE_BUF:
                os.write(self._pipe, held)
                held = b""
            held += encoded
        if held:
            os.write(self._pipe, held)
