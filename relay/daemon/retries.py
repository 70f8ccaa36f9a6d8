"""Steps that need the database, run again while it is unwell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity

from inbox.db.dialect import failure_of
from relay.observe import Observer

_UNWELL = tenacity.retry_if_exception(lambda error: failure_of(error) != "fault")
_ANY = tenacity.retry_if_exception_type(Exception)

_Result = TypeVar("_Result")


def until_done(
    what: str, step: Callable[[], _Result], *, unless: threading.Event, observer: Observer
) -> _Result | None:
    """Run a step until the database takes it, or `unless` is set: then None."""
    retrying = tenacity.Retrying(
        retry=_UNWELL,
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
        stop=tenacity.stop_when_event_set(unless),
        sleep=tenacity.sleep_using_event(unless),
        before_sleep=lambda state: observer.database_trouble(what, _exception_of(state)),
        retry_error_callback=lambda state: observer.database_trouble(what, _exception_of(state)),
    )
    return retrying(step)


def tried(what: str, step: Callable[[], object], *, times: int, observer: Observer) -> None:
    """Run a step at most so many times; if it fails each time, that is logged and left."""
    retrying = tenacity.Retrying(
        retry=_ANY,
        wait=tenacity.wait_fixed(0.2),
        stop=tenacity.stop_after_attempt(times),
        retry_error_callback=lambda state: observer.database_trouble(what, _exception_of(state)),
    )
    retrying(step)


def _exception_of(state: tenacity.RetryCallState) -> BaseException:
    exception = None if state.outcome is None else state.outcome.exception()
    return exception or RuntimeError("no outcome")
