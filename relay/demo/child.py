"""`python -m relay.demo.child PARENT ARGUMENT...` becomes `python ARGUMENT...`, which is told to end when its parent dies.

Linux knows how; elsewhere the program ends only when its parent says so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); it outlives the exec below


def main() -> None:
    """Never returns. Exits at once when the parent is dead already."""
    parent, arguments = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the program that started this one has died")
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  # that is what it is for


if __name__ == "__main__":
    main()
