"""Shows the place of an exception without its message, which may contain a secret or a person's name."""

from __future__ import annotations

import traceback
from pathlib import Path

_MOST_FRAMES = 8
_MOST_CAUSES = 5


def place_of(error: BaseException, *, skip: int = 0) -> str:
    """Format its frames in one line, from the outermost down, as `FILE:LINE`, without the first `skip`."""
    frames = traceback.extract_tb(error.__traceback__)[skip:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:_MOST_FRAMES])


def without_message(error: BaseException, causes: int = _MOST_CAUSES) -> Exception:
    """Copy an exception with its frames, type and causes, and without its message."""
    kind = type(error)
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    bare: Exception = type(kind.__name__, (Exception,), named)().with_traceback(error.__traceback__)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and causes > 0:
        bare.__cause__ = without_message(cause, causes - 1)
    return bare
