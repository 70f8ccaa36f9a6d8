"""Locates mistakes in `inbox.toml`: the line of a key, and its table as the file writes it.

Other packages name a place at the beginning of a mistake, as `destinations.crm.auth: …` or `[sources.shop] secrets: …`. The
keys of the file decide where such a place ends, as a name may have a dot or a colon.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from inbox.config.mistakes import Mistake, Path
from inbox.config.model import Config

_HEADER = re.compile(r"\s*(?P<opening>\[{1,2})(?P<keys>[^\[\]]+)\]{1,2}\s*(#.*)?")
_ASSIGNMENT = re.compile(r"""\s*(?P<keys>(?:[\w.\s-]|"[^"]*"|'[^']*')+?)\s*=""")
_BARE = re.compile(r"[\w-]+", re.ASCII)
_INDEX = re.compile(r"\[\d+\]")
_STEP = re.compile(r"\.?(?P<key>\[\d+\]|[\w-]+|'[^']*')", re.ASCII)
_BEHIND_A_KEY = re.compile(r"[.\[:]")
_SECTIONS = frozenset(Config.__struct_fields__)
_SEPARATOR = ": "


class LocatedMistake(msgspec.Struct, frozen=True):
    """A mistake with its place: a line of what a program prints when it can't start."""

    file: str | None
    line: int | None
    key: str
    """The key with its table, such as `[sources.shop] secrets`; a variable's name; or empty."""
    text: str

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return _SEPARATOR.join(part for part in (place, self.key, self.text) if part)


class TomlText(msgspec.Struct, frozen=True):
    """The text of a configuration, parsed; `where` names the file."""

    where: str
    text: str
    tree: Mapping[str, Any]

    def locate(self, mistake: Mistake) -> LocatedMistake:
        """Find the line of a mistake's key, or else of what encloses it."""
        line, table = _find(self.text, mistake.path)
        rest = dotted(mistake.path[len(table) :])
        key = " ".join(part for part in (f"[{dotted(table)}]" if table else "", rest) if part)
        return LocatedMistake(self.where, line, key, mistake.text)

    def locate_line(self, line: str) -> LocatedMistake:
        """Find the line of a mistake that names its place at its beginning. Any other is about no line."""
        path, text = self._path_of(line)
        if not path:
            return LocatedMistake(None, None, "", line)
        return self.locate(Mistake(path, text))

    def _path_of(self, line: str) -> tuple[Path, str]:
        """Split a mistake into the path that it begins with, and its text."""
        table, bracket, behind = line[1:].partition("]") if line.startswith("[") else (line, "", "")
        path, rest = self._walk(table)
        if not path or path[0] not in _SECTIONS or (bracket and rest):
            return (), line
        if bracket:
            more, rest = self._walk(behind.removeprefix(" "), path)
            path = (*path, *more)
        return (path, rest.removeprefix(_SEPARATOR)) if rest.startswith(_SEPARATOR) else ((), line)

    def _walk(self, text: str, begin: Path = ()) -> tuple[Path, str]:
        """Follow keys from `begin` as far as the text names any; return them, and the rest of the text."""
        node: object = self.tree
        for key in begin:
            node = _inside(node, key)
        path: list[str] = []
        while text and not text.startswith(_SEPARATOR):
            known = _leading(node, text.removeprefix(".") if path else text)
            if known is not None:
                key, text = known, text.removeprefix(".").removeprefix(known)
            elif step := _STEP.match(text):
                key, text = step["key"].strip("'"), text[step.end() :]
            else:
                break
            path.append(key)
            node = _inside(node, key)
        return tuple(path), text


def _leading(node: object, text: str) -> str | None:
    """Return the longest key of a table that the text begins with; None without one."""
    if not isinstance(node, dict):
        return None
    ends = (*(found.start() for found in _BEHIND_A_KEY.finditer(text)), len(text))
    return next((text[:end] for end in reversed(ends) if end and text[:end] in node), None)


def _inside(node: object, key: str) -> object:
    if isinstance(node, dict):
        return node.get(key)
    if isinstance(node, list) and _INDEX.fullmatch(key) and int(key[1:-1]) < len(node):
        return node[int(key[1:-1])]
    return None


def _find(text: str, path: Path) -> tuple[int | None, Path]:
    """Find the line, and its table, that leads farthest down `path`.

    A table header inside a multi-line string misleads this plain scan. A wrong line in an error is acceptable.
    """
    lines = _lines(text)
    if path and path not in lines:  # a table that has no header of its own begins with the first one in it
        inside = next((number for key, (number, _) in lines.items() if key[: len(path)] == path), None)
        if inside is not None:
            return inside, path[:-1]
    for length in range(len(path), 0, -1):
        if found := lines.get(path[:length]):
            return found
    return None, path[:-1]


@lru_cache(maxsize=4)
def _lines(text: str) -> Mapping[Path, tuple[int, Path]]:
    """Return the first line of each key with its table, by the whole path of the key. A table of a list has its number."""
    found: dict[Path, tuple[int, Path]] = {}
    for number, table, here in _scanned(text):
        found.setdefault(here, (number, table))
    return found


def _scanned(text: str) -> Iterator[tuple[int, Path, Path]]:
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            is_item = header["opening"] == "[["
            table = _numbered(_keys(header["keys"]), counts, is_item=is_item)
            if is_item:  # the list itself
                yield number, table[:-1], table[:-1]
            yield number, table, table
        elif assignment := _ASSIGNMENT.match(line):
            yield number, table, table + _keys(assignment["keys"])


def _numbered(keys: Path, counts: dict[Path, int], *, is_item: bool) -> Path:
    """Return the path of a table: behind the name of a list stands the number of its last table, or of a new one."""
    path: Path = ()
    for position, key in enumerate(keys, start=1):
        path = (*path, key)
        if is_item and position == len(keys):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, f"[{counts[path]}]")
    return path


def _keys(keys: str) -> Path:
    """Split `a."b.c".d` into its parts, with the TOML parser itself."""
    try:
        tree = tomllib.loads(f"{keys} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    found: list[str] = []
    inner: object = tree
    while isinstance(inner, dict):
        key, inner = next(iter(inner.items()))
        found.append(key)
    return tuple(found)


def dotted(path: Path) -> str:
    """Join a path as `auth.secrets[0]`; a key that is not bare is quoted, as in the file."""
    parts = (part if _BARE.fullmatch(part) or _INDEX.fullmatch(part) else repr(part) for part in path)
    return ".".join(parts).replace(".[", "[")
