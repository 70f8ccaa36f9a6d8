"""JMESPath expressions, functions of the operator, and the JSON that they read. Pure."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions

from inbox.config.mistakes import nearest
from inbox.errors import BodyErased, ConfigError, MappingError
from inbox.events.strict_json import DEEPEST, LONGEST_NUMBER, exact, has_too_long_number, is_too_deep
from inbox.loader.load import config_path
from inbox.sources.expressions import names_read

Scope = dict[str, Any]

EVENT_FIELDS = frozenset(
    {
        "source", "entity_type", "entity_id", "event_type", "action", "event_id", "occurred_at", "received_at", "seq", "body",
    }
)  # fmt: skip
"""Names in `event`, the part of the scope that describes the event."""


class Expression:
    """A compiled JMESPath expression.

    `where` names the route and the field in errors. `known` has the names of the scope's values; None allows any JSON.
    """

    def __init__(self, text: str, where: str, known: Collection[str] | None) -> None:
        self.text = text
        self.where = where
        try:
            self._compiled = jmespath.compile(text)
        except JMESPathError as error:
            reason = str(error).splitlines()[0].rstrip(":").removesuffix(", for expression")
            raise ConfigError(
                f"{where}: {text!r} is not a JMESPath expression: {reason}{_without_braces(text)}"
            ) from None
        for problem in _problems(self._compiled.parsed, known):
            raise ConfigError(f"{where}: {text!r} {problem}")

    @property
    def tree(self) -> object:
        """The parsed form, which is equal for expressions that differ only in spacing."""
        return self._compiled.parsed

    @property
    def glue(self) -> str | None:
        """The literal texts that `join` puts between its values; None without a join."""
        tree = self._compiled.parsed
        if all(call["value"] != "join" for call in _nodes(tree, "function_expression")):
            return None
        return "".join(node["value"] for node in _nodes(tree, "literal") if isinstance(node["value"], str))

    def looks_into(self, name: str) -> bool:
        """Return True if the expression reads this top-level name of the scope."""
        return name in names_read(self._compiled.parsed)

    def value(self, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        """Evaluate the expression; None if it finds no value.

        Raises:
            MappingError: it can't be evaluated, for example because a function gets a value of the wrong type.
            BodyErased: it reads the body of an event whose body was erased.
        """
        try:
            return self._compiled.search(scope)
        except BodyErased:
            raise
        except Exception as error:  # noqa: BLE001  # jmespath passes on any error of a function
            raise MappingError(f"{self.text} can't be evaluated: {type(error).__name__}", field=self.where) from None


def decode(body: bytes) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """Decode the JSON in `body`. A number that a float would change becomes a Decimal.

    Raises:
        ValueError: the body is not JSON, is nested deeper than `DEEPEST`, or has a number that `inbox.events.strict_json`
            refuses. The text has the reason.
    """
    if is_too_deep(body):
        raise ValueError(f"nested deeper than {DEEPEST} levels, or its brackets do not match")
    if has_too_long_number(body):
        raise ValueError(f"unusable: a number in it has more than {LONGEST_NUMBER} characters")
    try:
        return _DECODER.decode(body)
    except _UnusableNumber as error:
        raise ValueError(f"unusable: a number in it {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):  # Python's text of a UnicodeDecodeError is not for users
        raise ValueError("not JSON") from None


class _UnusableNumber(Exception):
    """An unusable number. Not a ValueError, because msgspec replaces the text of those."""


def _number(text: str) -> float | Decimal:
    try:
        return exact(text)
    except ValueError as error:
        raise _UnusableNumber(error) from None


_DECODER = msgspec.json.Decoder(float_hook=_number)
_ENCODER = msgspec.json.Encoder(order="deterministic", decimal_format="number")
encode = _ENCODER.encode
"""Encode a value as canonical JSON."""


def digest(value: object) -> bytes:
    """Return the SHA-256 of `value` as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(encode(value)).digest()


def _problems(tree: Mapping[str, Any], known: Collection[str] | None) -> Iterator[str]:
    """Yield the reasons why an expression always fails or finds no value."""
    for call in _nodes(tree, "function_expression"):
        name, given = call["value"], len(call["children"])
        if name not in Functions.FUNCTION_TABLE:
            yield f"uses an unknown function {name!r}; {nearest(name, Functions.FUNCTION_TABLE)}"
            continue
        signature = Functions.FUNCTION_TABLE[name]["signature"]
        at_least = "at least " if signature and signature[-1].get("variadic") else ""
        if given < len(signature) or (given > len(signature) and not at_least):
            arguments = "argument" if len(signature) == 1 else "arguments"
            yield f"passes {given} to {name}, which takes {at_least}{len(signature)} {arguments}"
    if known is None:
        return
    for name in names_read(tree):
        if name not in known:
            valid = nearest(name, known)
            yield f"uses an unknown name {name!r}; {valid.replace('valid here', 'known here')}"
    for name in names_read(tree, "event") if "event" in known else ():
        if name not in EVENT_FIELDS:
            yield f"uses an unknown name {name!r} in event; {nearest(name, EVENT_FIELDS)}"


def _without_braces(text: str) -> str:
    """Return a hint for an expression in braces, like the placeholder of a template."""
    bare = text.strip().strip("{}").strip()
    if not text.strip().startswith("{"):
        return ""
    try:
        jmespath.compile(bare)
    except JMESPathError:
        return ""
    return f"; only templates have braces, so write {bare!r}"


def _nodes(node: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield all nodes of this kind in an expression."""
    if node["type"] == kind:
        yield node
    for child in node.get("children", []):
        if isinstance(child, dict):  # the children of a slice are numbers
            yield from _nodes(child, kind)


# --- Events whose body was erased: reading the body ends the attempt; everything else still works. Pure.


_BODY = "body"


class ErasedEvent(dict[str, Any]):
    """The scope of an event without its body. Reading the body as absent would clear the counterpart's fields."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  # any JSON value
        return self._refuse_body() if name == _BODY else super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # any JSON value
        """Return a value, as `dict.get`; JMESPath calls this."""
        return self._refuse_body() if name == _BODY else super().get(name, default)

    def items(self) -> NoReturn:
        """Refuse: the body would be among them."""
        self._refuse_body()

    def values(self) -> NoReturn:
        """Refuse: the body would be among them."""
        self._refuse_body()

    def __deepcopy__(self, _memo: object) -> ErasedEvent:
        """Copy the scope for a function of the operator; its values are texts and numbers."""
        return ErasedEvent(dict.items(self))

    @staticmethod
    def _refuse_body() -> NoReturn:
        raise BodyErased


# --- Functions of the operator: imported by `package.module:name` at startup, and called with copies.


Function = Callable[..., object]


def load_function(place: str, where: str, takes: Sequence[str] = ("event",)) -> Function:
    """Import a function, and check that it takes these arguments. `where` names the key in errors.

    The folder of `inbox.toml` is searched after Python's own path, so that a file there can't replace an installed module.

    Raises:
        ConfigError: there is no such module, it can't be imported, or it has no such function.
    """
    folder = config_path().resolve().parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    module_name, _, path = place.partition(":")
    found: Any = _module(module_name, where, folder)
    for name in path.split("."):
        if not hasattr(found, name):
            there = [each for each in dir(found) if callable(getattr(found, each, None)) and not each.startswith("_")]
            file = getattr(found, "__file__", None) or module_name
            raise ConfigError(f"{where}: {file} has no {name!r}; {nearest(name, there)}")
        found = getattr(found, name)
    _check(found, place, where, takes)
    function: Function = found
    return function


class Hook:
    """A function for values that a map can't express. It gets copies, which it may modify."""

    def __init__(self, reference: str, where: str, takes: Sequence[str]) -> None:
        self.reference = reference
        self.where = where
        self._function = load_function(reference, where, takes)

    def call(self, *arguments: object) -> Any:  # noqa: ANN401  # whatever it returns
        """Call the function, and return its result.

        Raises:
            MappingError: the function raised. The text has only the type of the error, as the error's own text may hold anything.
            BodyErased: it reads the body of an event whose body was erased.
        """
        try:
            return self._function(*copy.deepcopy(arguments))
        except BodyErased:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # its errors concern this event only
            raise MappingError(f"{self.reference} raised {type(error).__name__}", field=self.where) from None


def _module(name: str, where: str, folder: Path) -> object:
    importlib.invalidate_caches()  # the file may be newer than Python's cache of the folder
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: {name} imports {error.name!r}, which is not installed") from None
        file = f"{name.replace('.', '/')}.py"
        raise ConfigError(
            f"{where}: there is no module {name!r}; write {file} in {folder}, or install the package that has it"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a module may do anything when it is imported
        # Without the error's text, which may hold anything that the module has read.
        raise ConfigError(
            f"{where}: {name} can't be imported: {type(error).__name__}; try python -c 'import {name}' in {folder}"
        ) from None


def _check(found: object, place: str, where: str, takes: Sequence[str]) -> None:
    if not callable(found):
        raise ConfigError(f"{where}: {place} is not a function, but of type {type(found).__name__}")
    for each in (found, getattr(found, "__call__", None)):  # noqa: B004  # an object's own, which may be async
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each):
            raise ConfigError(
                f"{where}: {place} is async or a generator, so calling it has no effect; write a plain def"
            )
    try:
        inspect.signature(found).bind(*takes)
    except TypeError:
        wanted = "one argument, the event" if len(takes) == 1 else f"{len(takes)} arguments: {', '.join(takes)}"
        raise ConfigError(f"{where}: {place} must take {wanted}") from None
    except ValueError:  # written in C: it has no signature
        pass
