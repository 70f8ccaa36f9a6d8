"""A small disk that can be filled: a tmpfs, which only root can mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CAN_BE_MADE = sys.platform == "linux" and os.geteuid() == 0


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk in a new folder for the block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Fill the disk for the block, in ever smaller pieces until not one block is free."""
    ballast, piece, size = disk / "ballast", 1 << 24, 0
    try:
        with ballast.open("wb") as file:
            while piece >= 1 << 12:
                try:
                    os.posix_fallocate(file.fileno(), size, piece)
                    size += piece
                except OSError:
                    piece >>= 1
        yield
    finally:
        ballast.unlink(missing_ok=True)
