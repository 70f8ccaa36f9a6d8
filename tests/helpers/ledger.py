"""A ledger: one line of JSON for each thing that happened, on disk before anybody hears of it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Ledger:
    """Numbers lines and appends them; many threads may write."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._lines: list[Line] = []

    def append(self, **line: object) -> None:
        """Write a line, with its number as `n` and the time (monotonic, in seconds) as `at`, through to the file."""
        with self._lock:
            numbered = {"n": len(self._lines) + 1, "at": time.monotonic(), **line}
            self._lines.append(numbered)
            self._file.write(json.dumps(numbered) + "\n")
            self._file.flush()

    def lines(self) -> list[Line]:
        """All lines so far."""
        with self._lock:
            return list(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def close(self) -> None:
        """Write no more."""
        self._file.close()
