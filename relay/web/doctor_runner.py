"""Runs `inbox doctor` for the page: one run at a time, in a thread of its own, whose report everybody sees for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

import msgspec

from inbox.clock import Clock
from inbox.config.model import Config
from inbox.observe.logs import fields, without_message
from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import ExaminationResult, Installation, installed, run

KEPT_SECONDS = 60.0
"""A report that is younger is shown again: the examinations cost the database some seconds of work."""

log = logging.getLogger(__name__)


class DoctorReport(msgspec.Struct, frozen=True):
    """The results of one run."""

    began_at: datetime
    seconds: float
    results: tuple[ExaminationResult, ...]
    error: str | None = None
    """Reason why the run ended early; None: it did not."""


class DoctorRunner:
    """The last report, and the run that makes the next one. Safe to share between threads."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        examine: Callable[[Installation], list[ExaminationResult]] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare it. `examine` makes the results of an installation."""
        self._config, self._clock, self._monotonic = config, clock, monotonic
        self._examine = examine or (lambda installation: run(installation, EXAMINATIONS))
        self._lock = threading.Lock()
        self._report: DoctorReport | None = None
        self._ended = 0.0
        self._running_since: datetime | None = None

    @property
    def report(self) -> DoctorReport | None:
        """The last report; None: there was no run since the page started."""
        return self._report

    @property
    def running_since(self) -> datetime | None:
        """Start of the present run; None: none is under way."""
        return self._running_since

    def ask(self) -> bool:
        """Start a run, unless one is under way or the last report is young. Returns whether it started one."""
        with self._lock:
            is_fresh = self._report is not None and self._report.error is None
            is_fresh = is_fresh and self._monotonic() - self._ended < KEPT_SECONDS
            if self._running_since is not None or is_fresh:
                return False
            self._running_since = self._clock.now()
        threading.Thread(target=self._run, name="web-doctor", daemon=True).start()
        return True

    def _run(self) -> None:
        began_at, began = self._clock.now(), self._monotonic()
        results: list[ExaminationResult] = []
        error = None
        try:
            with installed(self._config) as installation:
                results = self._examine(installation)
        except Exception as failure:  # whatever it is, the page says so and can run it again
            log.exception("the examinations could not be run", exc_info=without_message(failure), extra=fields("bug"))
            error = f"{type(failure).__name__}: {failure}"
        with self._lock:
            self._ended = self._monotonic()
            seconds = round(self._ended - began, 3)
            self._report = DoctorReport(began_at, seconds, tuple(results), error)
            self._running_since = None
