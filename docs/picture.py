"""Makes `docs/demo.svg` out of a real run: `python docs/picture.py` starts `relay demo` and watches it.

It keeps the beginning, the `SHOWN` lines with the most happening, then the changes that no webhook reported and the findings
of the relay's commands, without calls that only read. No test runs this, as no two runs are the same.
"""  # noqa: INP001  # a script beside pages

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

WIDTH = 96
SHOWN = 12
"""Lines of events to show."""
WORTH_SEEING = ("UPDATE", " 503 ", "PATCH", "DELETE")
PAGE = Path(__file__).resolve().parent / "demo.svg"
THEME = TerminalTheme(
    (24, 26, 31), (214, 217, 224),
    [(24, 26, 31), (240, 98, 98), (126, 200, 120), (224, 180, 90), (100, 150, 240), (200, 130, 220), (90, 190, 200),
     (214, 217, 224)],
    [(120, 125, 135), (240, 98, 98), (126, 200, 120), (224, 180, 90), (100, 150, 240), (200, 130, 220), (90, 190, 200),
     (255, 255, 255)],
)  # fmt: skip
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>relay demo</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """Record the demo, choose lines, and draw them."""
    lines = record_demo()
    plain = [Text.from_ansi(line).plain for line in lines]
    begin = next(number for number, line in enumerate(plain) if not line.strip())
    unreported = next(number for number, line in enumerate(plain) if " no webhook: " in line)
    starts = [number for number, line in enumerate(plain[: unreported - SHOWN]) if " change " in line]
    start = max(starts, key=lambda number: worth(plain[number : number + SHOWN]))
    end = max(number for number, line in enumerate(plain) if "in sync" in line)
    found = [
        line for line, text in zip(lines[unreported:end], plain[unreported:end], strict=True) if " GET " not in text
    ]
    shown = [*lines[: begin + 1], "[…]", *lines[start : start + SHOWN], "[…]", *found, lines[end]]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        for line in shown:
            console.print(Text.from_ansi(line), no_wrap=True, crop=True)
        svg = console.export_svg(title="relay demo", theme=THEME, code_format=FORMAT, unique_id="demo")
    PAGE.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE), encoding="utf-8")


def worth(lines: list[str]) -> int:
    """Count the texts of WORTH_SEEING that are in the lines."""
    return sum(any(text in line for line in lines) for text in WORTH_SEEING)


def record_demo() -> list[str]:
    """Record the output of `relay demo`, with its colours, until enough has happened."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "relay", "demo"]
    environment = os.environ | {"COLUMNS": str(WIDTH), "LINES": "20", "TERM": "xterm-256color"}
    with tempfile.TemporaryDirectory() as folder:
        demo = subprocess.Popen(  # noqa: S603  # our own
            [*command, "--folder", folder], stdin=writer, stdout=writer, stderr=writer, env=environment
        )
        os.close(writer)
        printed = b""
        try:
            while read := os.read(reader, 65536):
                printed += read
        except OSError:
            demo.wait()  # the other end is closed
        os.close(reader)
    return printed.decode().replace("\r", "").split("\n")


if __name__ == "__main__":
    main()
