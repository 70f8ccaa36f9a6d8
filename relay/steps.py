"""Runs the steps of a relay in isolation: a failing step is logged, counted, alerted and retried; the others continue.

`run_beside` starts a thread that repeats a step beside the loop.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, TypeVar

import msgspec
import tenacity
from sqlalchemy.exc import SQLAlchemyError

from inbox.db.dialect import classify_failure, error_text
from relay.observe import Observer

Step = Literal[
    "give_back",
    "record",
    "sequence",
    "claim",
    "claim_suspect",
    "rescue",
    "look_at_gates",
    "judge_duplicates",
    "look_at_conditions",
    "log_alerts",
    "send_alerts",
    "flush_throughput",
    "commands",
    "renew",
    "heartbeat",
    "sweep",
    "prune",
]
"""Every step that a relay repeats; `tests/bulkheads` plants failures into each."""

CRITICAL: frozenset[Step] = frozenset({"record", "claim"})
"""Steps that a relay can't do without: if one fails for `LASTS_SECONDS`, the process ends so that another can try."""

URGENT: frozenset[Step] = CRITICAL | {"give_back", "sequence", "rescue", "renew", "heartbeat"}
"""Steps that are retried within `LONGEST_URGENT_WAIT_SECONDS`, however often they have failed."""

AWAITED: frozenset[Step] = frozenset({"sequence"})
"""Steps for which claims wait while the database blocks them: claims could overtake an older event."""

AWAITED_SECONDS = 15.0
"""The longest wait of claims. It equals a lease: by then all locks of a dead or stalled process are free."""
AWAITED_AGAIN_SECONDS = 0.5
LASTS_SECONDS = 60.0
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 60.0
LONGEST_URGENT_WAIT_SECONDS = 5.0
PART_OF_THE_TIME = 1 / 10
"""The largest share of time that a paced step may take. Its scans also read row versions that old transactions keep alive."""
AT_LEAST_EVERY_SECONDS = 4.0
"""The longest pause for pacing: with a lease of 15 s, a dead relay is replaced within 20 s."""
_MOST_DOUBLINGS = 10
_NEVER = -math.inf

Result = TypeVar("Result")


class Failing(msgspec.Struct, frozen=True):
    """A step that is failing now. Times are monotonic seconds."""

    error: str
    times: int
    since: float
    """Time of the first failure since the last success."""
    again_at: float
    """Time of the next retry."""
    alerted_at: float
    """Time of the last alert; `_NEVER` before the first."""
    is_held_up: bool
    """True when the database blocks the step; False for a fault."""


class Steps(msgspec.Struct):
    """Runs steps by their names; each name belongs to one thread.

    `alert` is called when a step begins to fail, or when the database has blocked it for a minute. If `alert` returns False,
    the next failure calls it again. While the step keeps failing, `alert` is called every `LASTS_SECONDS`: another relay may
    have taken this one for dead and ended the alert. `is_healthy` returns whether the database accepts writes. Neither may raise.
    """

    observer: Observer
    alert: Callable[[str, str], bool] = lambda _name, _error: True
    is_healthy: Callable[[], bool] = lambda: True
    monotonic: Callable[[], float] = time.monotonic
    by_name: dict[str, Failing] = {}
    """The failing steps."""

    @property
    def failing(self) -> Mapping[str, str]:
        """The failing steps with their errors."""
        return {name: failing.error for name, failing in self.by_name.copy().items()}

    def is_awaited(self, step: Step) -> bool:
        """Return whether claims must wait for this step: the database has blocked it for less than `AWAITED_SECONDS`."""
        failing = self.by_name.get(step)
        return failing is not None and failing.is_held_up and self.monotonic() - failing.since < AWAITED_SECONDS

    def run(self, step: Step, work: Callable[[], Result], otherwise: Result, *, subject: str = "") -> Result:
        """Run a step, unless it is waiting for its next retry.

        Args:
            step: the step's name.
            work: the function to call.
            otherwise: the result if the step is skipped or fails.
            subject: the part of the step to run; each part has its own backoff.

        Returns:
            The result of `work`, or `otherwise`.

        Raises:
            Exception: the database is unreachable, so every step has to wait; or a critical step has failed for
                `LASTS_SECONDS` although the database accepts writes.
        """
        name = f"{step} {subject}".strip()
        before = self.by_name.get(name)
        if before is not None and self.monotonic() < before.again_at:
            return otherwise
        try:
            result = work()
        except Exception as error:
            failure = classify_failure(error)
            # A single query may be too expensive, or hit a damaged page, while all others succeed.
            if failure == "unreachable" and not self.is_healthy():
                raise
            self._on_failure(step, name, before, error, is_fault=failure == "fault")
            return otherwise
        if before is not None:
            self.by_name.pop(name, None)  # after a reload, two threads may run the same sweep for a moment
            self.observer.log("step_recovered", step=name, times=before.times)
        return result

    def _on_failure(self, step: Step, name: str, before: Failing | None, error: Exception, *, is_fault: bool) -> None:
        now = self.monotonic()
        times, since = (1, now) if before is None else (before.times + 1, before.since)
        is_to_be_alerted = is_fault or now - since >= LASTS_SECONDS
        is_awaited = step in AWAITED and not is_fault and now - since < AWAITED_SECONDS
        longest = LONGEST_URGENT_WAIT_SECONDS if step in URGENT else LONGEST_WAIT_SECONDS
        longest = AWAITED_AGAIN_SECONDS if is_awaited else longest
        wait = min(FIRST_WAIT_SECONDS * 2 ** min(times - 1, _MOST_DOUBLINGS), longest)
        if is_fault:
            self.observer.on_step_failed(step, error, wait)
        else:
            self.observer.on_database_trouble(name, error)
        alerted_at = _NEVER if before is None else before.alerted_at
        failing = Failing(error_text(error), times, since, now + wait, alerted_at, is_held_up=not is_fault)
        self._set_failing(name, failing, is_to_be_alerted=is_to_be_alerted)
        if step in CRITICAL and is_fault and now - since >= LASTS_SECONDS and self.is_healthy():
            raise error

    def _set_failing(self, name: str, failing: Failing, *, is_to_be_alerted: bool) -> None:
        self.by_name[name] = failing  # before the alert, which sends a heartbeat with the failing steps
        is_due = is_to_be_alerted and self.monotonic() - failing.alerted_at >= LASTS_SECONDS
        if is_due and self.alert(name, failing.error):
            self.by_name[name] = msgspec.structs.replace(failing, alerted_at=self.monotonic())

    def retry_until_done(self, what: str, work: Callable[[], Result], *, unless: threading.Event) -> Result | None:
        """Retry the work until the database accepts it. Returns None once `unless` is set. Raises if the work is at fault."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: classify_failure(error) != "fault"),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_when_event_set(unless),
            sleep=tenacity.sleep_using_event(unless),
            before_sleep=partial(self._log_failure, what),
            retry_error_callback=partial(self._log_failure, what),
        )
        return retrying(work)

    def attempt(self, what: str, work: Callable[[], object], *, times: int = 1) -> None:
        """Try the work up to `times` times; log the last failure instead of raising it."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Exception),
            wait=tenacity.wait_fixed(0.2),
            stop=tenacity.stop_after_attempt(times),
            retry_error_callback=partial(self._log_failure, what),
        )
        retrying(work)

    def _log_failure(self, what: str, state: tenacity.RetryCallState) -> None:
        exception = None if state.outcome is None else state.outcome.exception()
        self.observer.on_database_trouble(what, exception or RuntimeError("no outcome"))


class Repeated(msgspec.Struct):
    """A step of the loop with its schedule."""

    name: Step
    every: float
    """Minimum pause in seconds, unless `work` reports more to do. With 0, the step runs in each round."""
    work: Callable[[], int]
    """Returns more than 0 to run again at once."""
    when: Callable[[], bool] = lambda: True
    """Condition for running."""
    paces: bool = True
    """True: the pause grows with the duration of the step."""
    due_at: float = 0.0

    def run(self, steps: Steps) -> int:
        """Run the step if it is due. Returns the result of `work`."""
        began = time.monotonic()
        if began < self.due_at or not self.when():
            return 0
        done = steps.run(self.name, self.work, 0)
        ended = time.monotonic()
        longer = min((ended - began) / PART_OF_THE_TIME, AT_LEAST_EVERY_SECONDS) if self.paces else 0.0
        self.due_at = 0.0 if done else ended + (self.every and max(self.every, longer))
        return done


def run_beside(
    name: str, work: Callable[[], float | None], *, every: float, stop: threading.Event, observer: Observer
) -> threading.Thread:
    """Start a thread beside the loop that repeats `work` until `stop` is set; errors do not end it.

    `work` runs at once, and again after `every` seconds, or after as many seconds as it returns.
    """

    def run() -> None:
        wait: float | None = 0.0
        while not stop.wait(every if wait is None else wait):
            wait = None
            try:
                wait = work()
            except SQLAlchemyError as error:  # no connection
                observer.on_database_trouble(name, error)
            except Exception as error:  # noqa: BLE001  # otherwise the thread would end, and its work stop, without a log line
                observer.log("bug_in_thread", bug=error, subject=name)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
