"""Counts the metrics of one process, and hands them to the exporter through a pipe.

The first process of a side makes the pipe before it starts any other, and each of them has an end of it to write to.
There is no file and no folder: nothing that another user could prepare, that could fill the memory, or that would be left
behind by a process that was killed.
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
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from inbox.config.types import Address
from inbox.telemetry.metrics import OFF, Meters, Metric

PIPE = "INBOX_METRICS_PIPE"
"""The environment variable by which the processes of a side know the end of the pipe that they write to."""

WRITTEN_AFTER_SECONDS = 0.25
TOLD_AGAIN_SECONDS = 15.0
"""After so long everything is written again, also what has not changed: an exporter may have taken a dead one's place."""
_ENDS_WITHIN_SECONDS = 5.0
_LAST_WITHIN_SECONDS = 1.0

Line = tuple[str, tuple[str, ...], tuple[float, ...]]
"""A metric's name, the values of its labels, and what to add: of a counter a number, of a histogram how many in each
bucket and then their sum. A gauge has what it stands at, and since when by the monotonic clock, which all processes share.
"""

_log = logging.getLogger(__name__)


def exporter_at(address: Address | None, uid: int | None = None, gid: int | None = None) -> Exporter | None:
    """The exporter for this process and those that it will start; None when none is wanted, or possible.

    If this process is root's, the exporter takes `uid` and `gid`.
    """
    os.environ.pop(PIPE, None)  # of a process that has started this one
    if address is None:
        return None
    try:
        return Exporter(address, os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid)
    except OSError as error:  # too many files: everything else goes on
        _log.error("metrics: nothing is counted: %a", error)
        return None


class Exporter:
    """Starts and ends the program that serves metrics (`inbox.telemetry.exporter`), and owns the pipe to it."""

    def __init__(self, address: Address, uid: int, gid: int) -> None:
        self._command = [sys.executable, "-m", "inbox.telemetry.exporter", address, str(uid), str(gid)]
        self._process: subprocess.Popen[bytes] | None = None
        # This process keeps the reading end, too: what is written while no exporter runs waits for the next one.
        self._reading, self.pipe = os.pipe()
        os.environ[PIPE] = str(self.pipe)

    def ensure(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        try:
            self._process = subprocess.Popen(self._command, stdin=self._reading)  # noqa: S603  # our own Python, our own arguments
        except OSError as error:  # no memory, or too many processes: everything else goes on
            _log.error("metrics: can't be served now: %s", error)  # the traceback tells nothing more

    def stop(self) -> None:
        """End it, by the end of the pipe: the processes that count have closed theirs."""
        os.close(self.pipe)
        os.environ.pop(PIPE, None)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_WITHIN_SECONDS)
            self._process.kill()
            self._process.wait()
        os.close(self._reading)


def counting(table: Sequence[Metric]) -> Meters:
    """A recorder of the metrics in `table` for this process; `OFF` when that can't be done, with an error in the log."""
    try:
        pipe = int(os.environ[PIPE])
        os.set_inheritable(pipe, False)  # a child got it so; one of the child's own would keep the exporter from ending
        return Recorder(table, os.dup(pipe))
    except (OSError, KeyError, ValueError) as error:
        _log.error("metrics: this process counts nothing: %a", error)
        return OFF


class Recorder(Meters):
    """Adds up what any thread counts, and writes it in a thread of its own: counting makes no system call.

    While nobody reads the pipe, that thread waits, and the numbers add up here. They need no more room for it.
    """

    def __init__(self, table: Sequence[Metric], pipe: int) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        """Every series there ever was: of a gauge its value, of others the part that is not yet written."""
        self._changed: set[tuple[str, tuple[str, ...]]] = set()
        self._gauges = {metric.name for metric in table if metric.kind == "gauge"}
        self._wanted, self._ended = threading.Event(), threading.Event()
        for metric in table:
            if not metric.labels and metric.kind != "gauge":
                with self._lock:
                    self._of(metric, ())
        self._thread = threading.Thread(target=self._keep_writing, name="metrics", daemon=True)
        self._thread.start()

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._of(metric, labels)[0] += by

    def count_each(self, metric: Metric, labels: Iterable[str]) -> None:
        """Add one to each of these counters."""
        for label, number in Counter(labels).items():
            self.count(metric, label, by=number)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value to a histogram: a limit is in the bucket below it, as `le` says."""
        with self._lock:
            held = self._of(metric, labels)
            held[bisect_left(metric.buckets, value)] += 1
            held[-1] += value

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._of(metric, labels)[:] = value, time.monotonic()

    def close(self) -> None:
        """Write what is not yet written; an exporter that does not read it is waited for a second only."""
        self._ended.set()
        self._wanted.set()
        self._thread.join(_LAST_WITHIN_SECONDS)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> list[float]:
        """The numbers of one series, which are about to change. The lock is held."""
        key = (metric.name, labels)
        held = self._values.get(key)
        if held is None:
            held = self._values[key] = [0.0] * metric.numbers
        if not self._changed:
            self._wanted.set()
        self._changed.add(key)
        return held

    def _keep_writing(self) -> None:
        again = time.monotonic() + TOLD_AGAIN_SECONDS
        try:
            ending = False
            while not ending:
                self._wanted.wait(max(again - time.monotonic(), 0))
                ending = self._ended.wait(WRITTEN_AFTER_SECONDS)
                everything = time.monotonic() >= again
                if everything:
                    again = time.monotonic() + TOLD_AGAIN_SECONDS
                self._write(self._take(everything=everything))
        except OSError as error:  # neither an exporter nor anybody who could start one is left
            _log.error("metrics: what this process counts gets nowhere: %s", error)
        finally:
            os.close(self._pipe)

    def _take(self, *, everything: bool) -> list[Line]:
        """Take the lines to write now. Counters and histograms begin again at zero here."""
        with self._lock:
            keys, self._changed = set(self._values) if everything else self._changed, set()
            self._wanted.clear()
            lines = [(*key, tuple(self._values[key])) for key in keys]
            for key in keys:
                if key[0] not in self._gauges:
                    self._values[key] = [0.0] * len(self._values[key])
        return lines

    def _write(self, lines: Iterable[Line]) -> None:
        """Write whole lines, up to PIPE_BUF at once: POSIX keeps such a write in one piece beside those of other processes."""
        held = b""
        for line in lines:
            encoded = msgspec.json.encode(line) + b"\n"
            if len(held) + len(encoded) > select.PIPE_BUF:
                os.write(self._pipe, held)
                held = b""
            held += encoded
        if held:
            os.write(self._pipe, held)
