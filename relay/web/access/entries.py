"""The users and tokens files: lines of `NAME:ROLE:HASH`. Pure, apart from `write_entry`."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from inbox.errors import ConfigError
from inbox.logs.visible import visible
from relay.web.access.actor import ROLES, Role

Hash = TypeVar("Hash")

_NAME = re.compile(r"[\w.@+-]{1,64}")
NAMES = "letters, digits and . @ + - _, at most 64"
_PARTS = 3


class Entry(msgspec.Struct, Generic[Hash], frozen=True):
    """A line: a person or program, its role, and the hash of its password or token."""

    name: str
    role: Role
    hash: Hash
    line: str
    """The whole line. A session of a person is signed with it, so that any change of it ends the session."""

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.role!r}, …)"


Entries = Mapping[str, Entry[Hash]]


def is_name(name: str) -> bool:
    """Return whether a person or program may have this name."""
    return _NAME.fullmatch(name) is not None


def parse(text: str, where: str, hash_of: Callable[[str], Hash]) -> dict[str, Entry[Hash]]:
    """Parse a file. Empty lines and those that begin with `#` say nothing.

    Args:
        text: the content.
        where: the file's name, for messages.
        hash_of: parses a hash; it raises ValueError.

    Raises:
        ConfigError: a line is wrong, or a name stands twice. The message has the number of each such line, and no hash.
    """
    found: dict[str, Entry[Hash]] = {}
    numbers: dict[str, int] = {}
    mistakes: list[str] = []
    for number, line in _lines(text):
        try:
            entry = _entry(line, hash_of)
        except ValueError as error:
            mistakes.append(f"{where}, line {number}: {error}")
            continue
        if entry.name in found:
            mistakes.append(f"{where}, line {number}: {entry.name} stands in line {numbers[entry.name]} already")
        found[entry.name], numbers[entry.name] = entry, number
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        given = line.strip()
        if given and not given.startswith("#"):
            yield number, given


def _entry(line: str, hash_of: Callable[[str], Hash]) -> Entry[Hash]:
    """Parse a line. A message repeats neither its hash nor anything of a line without the two colons."""
    parts = line.split(":")
    if len(parts) != _PARTS:
        raise ValueError("expected NAME:ROLE:HASH, as `relay web passwd` and `relay web token` write it")
    name, role, hashed = parts
    if not is_name(name):
        raise ValueError(f"a name has {NAMES}")
    if role not in ROLES:
        raise ValueError(f"the role of {name} must be {' or '.join(ROLES)}")
    return Entry(name, role, hash_of(hashed), line)


def with_entry(text: str, name: str, line: str) -> str:
    """Return the content with the line of a name replaced, or added at the end; comments and other lines stay."""
    lines = text.splitlines()
    places = [at for at, old in enumerate(lines) if old.strip().partition(":")[0] == name]
    if places:
        lines[places[0]] = line
    else:
        lines.append(line)
    return "\n".join(lines) + "\n"


def write_entry(path: Path, name: str, line: str, hash_of: Callable[[str], object]) -> None:
    """Put a line into a file, atomically: readers see the old content or the new one.

    A new file can be read by its owner alone. One that is there keeps its owner and group, and gives nothing to others.

    Raises:
        ConfigError: the file can't be read or written, or has a wrong line.
    """
    try:
        path = path.resolve()  # a link stays one
        before = path.stat() if path.exists() else None
        text = path.read_text(encoding="utf-8") if before is not None else ""
        parse(text, str(path), hash_of)
        _replace(path, with_entry(text, name, line), before)
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't write {visible(str(path))}: {error}") from None


def _replace(path: Path, text: str, before: os.stat_result | None) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if before is not None:
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(handle, before.st_uid, before.st_gid)
                os.fchmod(handle, stat.S_IMODE(before.st_mode) & (stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP))
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
