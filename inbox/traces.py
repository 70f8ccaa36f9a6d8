"""Shows where an exception was raised, without its message: that may hold a secret, or what a person is called."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

_MOST_FRAMES = 8
_MOST_CAUSES = 5


def place_of(error: BaseException, *, skip: int = 0) -> str:
    """Its frames in one line, from the outermost down, as `FILE:LINE`; the first `skip` are left out."""
    frames = traceback.extract_tb(error.__traceback__)[skip:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:_MOST_FRAMES])


def bare_traceback(error: BaseException) -> str:
    """A traceback of files, lines, functions and types, with what it was caused by; no message, and no value."""
    return "\n".join(_lines(error))


def _lines(error: BaseException) -> Iterator[str]:
    cause: BaseException | None = error
    for number in range(_MOST_CAUSES):
        if cause is None:
            return
        yield "Traceback (most recent call last):" if number == 0 else "It was caused by:"
        yield from (line.rstrip("\n") for line in traceback.format_list(traceback.extract_tb(cause.__traceback__)))
        yield type(cause).__name__
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
