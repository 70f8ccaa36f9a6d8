"""Programs that tests run and Debian has: an installed one, or else that of its package, fetched and not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.machine import one_at_a_time


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
