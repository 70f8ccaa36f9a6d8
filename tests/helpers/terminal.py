"""A program at a terminal of a given size: a pseudo-terminal, whose output is read as it comes."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence

from tests.helpers.waiting import LONGEST_SECONDS, until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program that runs at a terminal."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
        fixed = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "60"}
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **fixed, **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # what is read may end within a character
        with contextlib.suppress(OSError):  # the program has ended
            while some := os.read(self._ours, 65536):
                self.raw += decoder.decode(some)

    @property
    def text(self) -> str:
        """Return what it has written so far, without colours and moves."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def shows(self, text: str, times: int = 1, within: float = LONGEST_SECONDS) -> None:
        """Wait until it has shown `text` so many times."""
        until(lambda: self.text.count(text) >= times, f"it shows {text!r}: {self.text[-2000:]}", within=within)

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(LONGEST_SECONDS)

    def ends(self, within: float = LONGEST_SECONDS) -> int:
        """Wait for its end; return the exit status."""
        status = self._process.wait(within)
        self._reader.join(LONGEST_SECONDS)
        return status

    def clean_up(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._reader.join(5)
        os.close(self._ours)


@contextlib.contextmanager
def at_terminal(command: Sequence[str], environment: Mapping[str, str], columns: int = 80) -> Iterator[Terminal]:
    """Run a program at a terminal of that width until the block ends."""
    terminal = Terminal(command, environment, columns)
    try:
        yield terminal
    finally:
        terminal.clean_up()
