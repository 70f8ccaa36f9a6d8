"""Compare a parsed `inbox.toml` with the classes of `inbox.config`, and name the key of each mistake.

msgspec makes the same checks, but it stops at the first mistake, and names neither the table (`$.routes[...]`) nor a near match.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, cast

import msgspec
from msgspec import inspect

from inbox.config.model import Config, Limited, Route
from inbox.config.sources import Source

Path = tuple[str, ...]
"""Keys from the top of the file down; list items are `[0]`."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAMED_BY_THEIR_TABLE = (Source, Limited, Route)
_SCALARS: dict[type[inspect.Type], tuple[tuple[type, ...], str]] = {
    inspect.StrType: ((str,), "text in quotes"),
    inspect.BoolType: ((bool,), "true or false"),
    inspect.IntType: ((int,), "a whole number"),
    inspect.FloatType: ((int, float), "a number"),
}


class Mistake(msgspec.Struct, frozen=True):
    """A mistake in the file, with its key."""

    path: Path
    text: str


def build(tree: dict[str, Any]) -> Config:
    """Build the values of a file without mistakes; named tables get their names.

    Raises:
        msgspec.ValidationError: `mistakes` missed something.
    """
    named = {
        section: {name: {**table, "name": name} for name, table in content.items()}
        for section, content in tree.items()
        if section in {"sources", "apis", "destinations", "routes"}
    }
    return msgspec.convert(tree | named, Config, dec_hook=parse_value)


def parse_value(kind: type, given: object) -> object:
    """Parse a type that TOML lacks (`Address`, `Duration`, `Secret` and so on): the decoding hook of msgspec.

    Raises:
        ValueError: `given` is invalid.
        TypeError: `kind` is not a type of the configuration.
    """
    if (parse := getattr(kind, "parse", None)) is None:
        raise TypeError(f"{kind.__name__} has no place in the configuration")
    made: object = parse(given)
    return made


def mistakes(tree: dict[str, Any]) -> Iterator[Mistake]:
    """Yield every unknown or missing key and every value of a wrong type, in the file's order."""
    return _check(_describe_config(), tree, ())


@cache
def _describe_config() -> inspect.Type:
    return inspect.type_info(Config)


def nearest(given: str, valid: Iterable[str]) -> str:
    """End a sentence with the nearest valid name, or with all valid names."""
    names = sorted(valid)
    close = get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid here: {', '.join(names)}" if names else "none is configured"


def _check(kind: inspect.Type, value: object, path: Path) -> Iterator[Mistake]:
    match kind:
        case inspect.UnionType():
            yield from _check_union(kind, value, path)
        case inspect.StructType():
            yield from _check_struct(kind, value, path)
        case inspect.DictType():
            yield from _check_dict(kind, value, path)
        case inspect.ListType() | inspect.VarTupleType():
            yield from _check_list(kind, value, path)
        case inspect.LiteralType():
            if value not in kind.values:
                valid = [str(literal) for literal in kind.values]
                yield Mistake(path, f"{value!r} is not one of {', '.join(valid)}; {nearest(str(value), valid)}")
        case inspect.CustomType():
            try:
                parse_value(kind.cls, value)
            except ValueError as error:
                yield Mistake(path, str(error))
        case _:
            yield from _check_scalar(kind, value, path)


def _check_scalar(kind: inspect.Type, value: object, path: Path) -> Iterator[Mistake]:
    if type(kind) not in _SCALARS:  # Any: a body that is passed on unchanged
        return
    types, described = _SCALARS[type(kind)]
    if type(value) not in types:  # not isinstance: true is an int in Python, but not in the file
        yield Mistake(path, f"expected {described}, got {_describe_type(value)}")
    elif isinstance(kind, inspect.IntType | inspect.FloatType):
        low, high = kind.ge, kind.le
        number = cast("float", value)
        if (low is not None and not number >= low) or (high is not None and not number <= high):  # so that nan fails
            yield Mistake(path, f"expected {described} from {low} to {high}, got {value}")


def _check_list(kind: inspect.ListType | inspect.VarTupleType, value: object, path: Path) -> Iterator[Mistake]:
    if not isinstance(value, list):
        yield Mistake(path, f"expected a list in [ ], got {_describe_type(value)}")
        return
    if kind.min_length is not None and len(value) < kind.min_length:
        yield Mistake(path, "must not be empty; leave the key out, or give at least one value")
    for position, item in enumerate(value):
        yield from _check(kind.item_type, item, (*path, f"[{position}]"))


def _check_dict(kind: inspect.DictType, value: object, path: Path) -> Iterator[Mistake]:
    if not isinstance(value, dict):
        yield Mistake(path, f"expected a table, got {_describe_type(value)}")
        return
    names_things = isinstance(kind.key_type, inspect.StrType) and kind.key_type.pattern is not None
    for key, item in value.items():
        if names_things and _NAME.fullmatch(key) is None:
            yield Mistake((*path, key), "a name has 1 to 64 characters, of A-Z, a-z, 0-9, _ and -; choose another")
        elif isinstance(kind.key_type, inspect.LiteralType) and key not in kind.key_type.values:
            yield Mistake((*path, key), f"unknown key; {nearest(key, map(str, kind.key_type.values))}")
        else:
            yield from _check(kind.value_type, item, (*path, key))


def _check_union(kind: inspect.UnionType, value: object, path: Path) -> Iterator[Mistake]:
    """Check a union: a table with a `kind`, a text or a table, or an optional key (TOML has no null)."""
    structs = {str(member.tag): member for member in kind.types if isinstance(member, inspect.StructType)}
    tags = [tag for tag, member in structs.items() if member.tag is not None]
    if not tags:
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        fitting = members if len(members) == 1 else [member for member in members if _may_be(member, value)]
        if fitting:
            yield from _check(fitting[0], value, path)
        else:
            expected = " or ".join(map(_describe_expected, members))
            yield Mistake(path, f"expected {expected}, got {_describe_type(value)}")
    elif not isinstance(value, dict):
        yield Mistake(path, f"expected a table with a kind, got {_describe_type(value)}")
    elif "kind" not in value:
        yield Mistake((*path, "kind"), f"is missing; one of {', '.join(tags)}")
    elif value["kind"] not in tags:
        given = value["kind"]
        yield Mistake((*path, "kind"), f"{given!r} is not one of {', '.join(tags)}; {nearest(str(given), tags)}")
    else:
        yield from _check_struct(structs[value["kind"]], value, path)


def _may_be(kind: inspect.Type, value: object) -> bool:
    if isinstance(kind, inspect.LiteralType):
        return isinstance(value, str)
    return type(value) in (_SCALARS[type(kind)][0] if type(kind) in _SCALARS else (dict,))


def _describe_expected(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    return _SCALARS[type(kind)][1] if type(kind) in _SCALARS else "a table"


def _check_struct(kind: inspect.StructType, value: object, path: Path) -> Iterator[Mistake]:
    if not isinstance(value, dict):
        yield Mistake(path, f"expected a table, got {_describe_type(value)}")
        return
    fields = {field.encode_name: field for field in kind.fields}
    if issubclass(kind.cls, _NAMED_BY_THEIR_TABLE):
        del fields["name"]
    valid = {*fields, kind.tag_field} if kind.tag_field else {*fields}
    for key, item in value.items():
        if key not in valid:
            yield Mistake(
                (*path, key), f"unknown key; {nearest(key, valid)}" if valid else "unknown key; none fits here"
            )
        elif key in fields:
            yield from _check(fields[key].type, item, (*path, key))
    for field in fields.values():
        if field.required and field.encode_name not in value:
            yield Mistake((*path, field.encode_name), "is missing")


def _describe_type(value: object) -> str:
    """Name a wrong value's type, never the value: it may be a misplaced secret."""
    names = {dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "a date or time")


# --- Location of mistakes in `inbox.toml`: the line of a key, and its table as the file writes it.
#
# Other packages begin a mistake with its key, as `destinations.crm.auth: …` or `[sources.shop] secrets: …`. The keys of the
# file decide where the key ends, as names may contain dots and colons.


_HEADER = re.compile(r"\s*(?P<opening>\[{1,2})(?P<keys>[^\[\]]+)\]{1,2}\s*(#.*)?")
_ASSIGNMENT = re.compile(r"""\s*(?P<keys>(?:[\w.\s-]|"[^"]*"|'[^']*')+?)\s*=""")
_BARE = re.compile(r"[\w-]+", re.ASCII)
_INDEX = re.compile(r"\[\d+\]")
_STEP = re.compile(r"\[\d+\]|[^.\[]+")
_SEPARATOR = ": "


class LocatedMistake(msgspec.Struct, frozen=True):
    """A mistake with its line, as printed by a program that can't start."""

    file: str | None
    line: int | None
    key: str
    """The key with its table, such as `[sources.shop] secrets`; the name of a variable; or empty."""
    text: str

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return _SEPARATOR.join(part for part in (place, self.key, self.text) if part)


class TomlText(msgspec.Struct, frozen=True):
    """The parsed text of a configuration; `where` names the file."""

    where: str
    text: str
    tree: Mapping[str, Any]

    def locate(self, mistake: Mistake) -> LocatedMistake:
        """Find the line of a mistake's key, or of its nearest enclosing table."""
        line, table = _find(self.text, mistake.path)
        rest = join_path(mistake.path[len(table) :])
        key = " ".join(part for part in (f"[{join_path(table)}]" if table else "", rest) if part)
        return LocatedMistake(self.where, line, key, mistake.text)

    def locate_line(self, line: str) -> LocatedMistake:
        """Find the line of a mistake that begins with its key; others have no line."""
        bare = line[1:].replace("] ", ".", 1) if line.startswith("[") else line
        places = [*_walk_paths(self.tree), *((section,) for section in Config.__struct_fields__)]
        named = [path for path in places if path and re.match(re.escape(_join_plain(path)) + r"[.\[:]", bare)]
        path = max(named, key=lambda each: len(_join_plain(each)), default=())
        further, separator, text = bare.removeprefix(_join_plain(path)).partition(_SEPARATOR)
        if not path or not separator or " " in further:  # a sentence, not a key
            return LocatedMistake(None, None, "", line)
        return self.locate(Mistake((*path, *_STEP.findall(further)), text))


def _walk_paths(node: object, path: Path = ()) -> Iterator[Path]:
    """Yield the path of every value in a parsed file."""
    yield path
    if isinstance(node, dict | list):
        steps = node.items() if isinstance(node, dict) else ((f"[{number}]", each) for number, each in enumerate(node))
        for key, inner in steps:
            yield from _walk_paths(inner, (*path, key))


def _join_plain(path: Path) -> str:
    """Join a path without quotes, as other packages write it."""
    return ".".join(path).replace(".[", "[")


def _find(text: str, path: Path) -> tuple[int | None, Path]:
    """Find the line, with its table, that matches most of `path`.

    A table header inside a multi-line string misleads this simple scan, which is acceptable: it only misplaces an error.
    """
    lines = _index_lines(text)
    if path and path not in lines:  # a table without its own header begins with the first one inside it
        inside = next((number for key, (number, _) in lines.items() if key[: len(path)] == path), None)
        if inside is not None:
            return inside, path[:-1]
    for length in range(len(path), 0, -1):
        if found := lines.get(path[:length]):
            return found
    return None, path[:-1]


@lru_cache(maxsize=4)
def _index_lines(text: str) -> Mapping[Path, tuple[int, Path]]:
    """Return the first line of each key with its table, by the key's full path. Tables in a list are numbered."""
    found: dict[Path, tuple[int, Path]] = {}
    for number, table, here in _scan_keys(text):
        found.setdefault(here, (number, table))
    return found


def _scan_keys(text: str) -> Iterator[tuple[int, Path, Path]]:
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            is_item = header["opening"] == "[["
            table = _number_tables(_split_keys(header["keys"]), counts, is_item=is_item)
            if is_item:  # the list itself
                yield number, table[:-1], table[:-1]
            yield number, table, table
        elif assignment := _ASSIGNMENT.match(line):
            yield number, table, table + _split_keys(assignment["keys"])


def _number_tables(keys: Path, counts: dict[Path, int], *, is_item: bool) -> Path:
    """Return a table's path, in which the name of a list is followed by the number of its last or new table."""
    path: Path = ()
    for position, key in enumerate(keys, start=1):
        path = (*path, key)
        if is_item and position == len(keys):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, f"[{counts[path]}]")
    return path


def _split_keys(keys: str) -> Path:
    """Split `a."b.c".d` into its parts with the TOML parser."""
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


def join_path(path: Path) -> str:
    """Join a path as `auth.secrets[0]`, quoting keys as the file does."""
    parts = (part if _BARE.fullmatch(part) or _INDEX.fullmatch(part) else repr(part) for part in path)
    return ".".join(parts).replace(".[", "[")
