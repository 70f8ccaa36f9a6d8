"""A small disk of a test's own, which can be full: a tmpfs, mounted as root or, without, in a namespace of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_IN_A_NAMESPACE = 'mount -t tmpfs -o "size=$1m,mode=0777" none "$2" && echo mounted && exec cat'


def can_be_made(kind: str) -> bool:
    """Return whether a small disk can be made here for a database of this kind.

    Without root it is reached through a link in /proc, which SQLite follows to where there is no such disk.
    """
    if os.geteuid() == 0:
        return sys.platform == "linux"
    return kind == "postgres" and _namespaces_are_allowed()


def _namespaces_are_allowed() -> bool:
    program = shutil.which("unshare")
    tried = program and subprocess.run([program, "--user", "--map-root-user", "--mount", "true"], check=False)
    return bool(tried and tried.returncode == 0)


class SmallDisk:
    """`path` is where its files are: for a mount in a namespace, the kernel's view of the process that keeps it."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir()
        self._mounted: Path | None = None
        self._keeper: subprocess.Popen[str] | None = None
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "none", folder], check=True)
            self.path = self._mounted = folder
            return
        self._keeper = subprocess.Popen(
            [
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                _IN_A_NAMESPACE,
                "sh",
                str(megabytes),
                folder,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "mounted\n", "neither root nor a user namespace can mount a small disk"
        self.path = Path(f"/proc/{self._keeper.pid}/root{folder.resolve()}")

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """No room at all is left, as long as the block runs."""
        ballast = self.path / "ballast"
        try:
            with ballast.open("wb") as file:
                _fill(file.fileno())
            yield
        finally:
            ballast.unlink(missing_ok=True)

    def clean_up(self) -> None:
        """Give it back."""
        if self._mounted is not None:
            subprocess.run(["umount", "--lazy", self._mounted], check=True)
        if self._keeper is not None:
            self._keeper.communicate()


def _fill(descriptor: int) -> None:
    """In ever smaller pieces, until not one block fits."""
    piece, size = 1 << 24, 0
    while piece >= 1 << 12:
        try:
            os.posix_fallocate(descriptor, size, piece)
            size += piece
        except OSError:
            piece >>= 1


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk as long as the block runs."""
    disk = SmallDisk(folder, megabytes)
    try:
        yield disk
    finally:
        disk.clean_up()
