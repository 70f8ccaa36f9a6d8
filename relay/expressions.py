"""JMESPath expressions, templates with expressions in them, and the JSON they look into. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import quote

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions

from inbox.errors import ConfigError, MappingError, gathered
from inbox.strict_json import DEEPEST, is_too_deep

Scope = dict[str, Any]
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_LITERAL_PATH = "/:@!$&'()*+,;=~%-._"


class Expression:
    """A compiled JMESPath.

    `where` names the route and the field in errors; `known` is what the scope will hold, and None for any JSON.
    """

    def __init__(self, text: str, where: str, known: Collection[str] | None) -> None:
        self.text = text
        self.where = where
        try:
            self._compiled = jmespath.compile(text)
        except JMESPathError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{where}: {text!r} is not a JMESPath expression: {reason}") from None
        for name in _functions(self._compiled.parsed):
            if name not in Functions.FUNCTION_TABLE:
                raise ConfigError(f"{where}: {text!r}: JMESPath has no function {name!r}")
        for name in _first_names(self._compiled.parsed) if known is not None else ():
            if name not in (known or ()):
                valid = ", ".join(sorted(known or ()))
                raise ConfigError(f"{where}: {text!r} looks for {name!r}; what is known here is: {valid}")

    def looks_into(self, name: str) -> bool:
        """Whether it looks this name up in the scope itself."""
        return name in _first_names(self._compiled.parsed)

    def value(self, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        """What it finds; None when there is nothing.

        Raises:
            MappingError: it can't be evaluated, such as when a function of it was given a value that it doesn't take.
        """
        try:
            return self._compiled.search(scope)
        except Exception as error:  # noqa: BLE001  # jmespath lets a function's own errors through, of any kind
            raise MappingError(f"{self.text} can't be evaluated: {type(error).__name__}", field=self.where) from None


class Template:
    """Text with expressions in it."""

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        self.where = where
        self.parts: list[str | Expression] = []
        end = 0
        matches = {str(match.start()): match for match in _PLACEHOLDER.finditer(text)}
        expressions = gathered(
            {at: partial(Expression, match[1].strip(), where, known) for at, match in matches.items()}
        )
        for at, match in matches.items():
            self.parts += [text[end : match.start()], expressions[at]]
            end = match.end()
        self.parts.append(text[end:])
        self.parts = [part for part in self.parts if part != ""]
        if any(isinstance(part, str) and re.search("[{}]", part) for part in self.parts):
            raise ConfigError(f"{where}: {text!r} has a brace without its counterpart")

    def looks_into(self, name: str) -> bool:
        """Whether one of its expressions does."""
        return any(isinstance(part, Expression) and part.looks_into(name) for part in self.parts)

    def expand(self, scope: Scope) -> str:
        """The text.

        Raises:
            MappingError: an expression finds nothing, or something that isn't a single value.
        """
        return "".join(part if isinstance(part, str) else self._text(part, scope) for part in self.parts)

    def value(self, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        """As `expand`, but a template that is one expression and nothing else keeps its value's type."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Expression):
            return self._found(self.parts[0], scope)
        return self.expand(scope)

    def _found(self, expression: Expression, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        value = expression.value(scope)
        if value is None:
            raise MappingError(f"{{{expression.text}}} has no value", field=self.where)
        return value

    def _text(self, expression: Expression, scope: Scope) -> str:
        value = self._found(expression, scope)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str | int | float | Decimal):
            return str(value)
        raise MappingError(f"{{{expression.text}}} is not a single value", field=self.where)


class Path(Template):
    """A path below an endpoint's URL; what is put into it is percent-encoded, slashes too."""

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        if not text.startswith("/"):
            raise ConfigError(f"{where}: {text!r} must begin with a slash")
        if re.search(r"[?#]", _PLACEHOLDER.sub("", text)):
            raise ConfigError(f"{where}: {text!r} must be a path alone; a query is written as params")
        super().__init__(text, where, known)
        self.parts = [quote(part, safe=_LITERAL_PATH) if isinstance(part, str) else part for part in self.parts]

    def _text(self, expression: Expression, scope: Scope) -> str:
        text = super()._text(expression, scope)
        if text in {"", ".", ".."}:
            # The other side would take it for the collection, or for another resource altogether (RFC 3986 §5.2.4).
            raise MappingError(f"{{{expression.text}}} is {text!r}, which is no name in a path", field=self.where)
        return percent_encoded(text, self.where)


def templated(value: object, where: str, known: Collection[str]) -> object:
    """`value` with each string in it, at any depth, made a template."""
    if isinstance(value, str):
        return Template(value, where, known)
    if isinstance(value, dict):
        return gathered({key: partial(templated, inner, f"{where}.{key}", known) for key, inner in value.items()})
    if isinstance(value, list):
        parts = {str(position): partial(templated, inner, where, known) for position, inner in enumerate(value)}
        return [*gathered(parts).values()]
    return value


def expanded(value: object, scope: Scope) -> object:
    """What `templated` made, with the values in place; raises MappingError when one is missing."""
    if isinstance(value, Template):
        return value.value(scope)
    if isinstance(value, dict):
        return {key: expanded(inner, scope) for key, inner in value.items()}
    if isinstance(value, list):
        return [expanded(inner, scope) for inner in value]
    return value


def percent_encoded(text: str, where: str) -> str:
    """`text` with everything but letters, digits and `-._~` percent-encoded.

    Raises:
        MappingError: it holds half of a surrogate pair, which no encoding has.
    """
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise MappingError("the value holds half of a character", field=where) from None


def decode(body: bytes) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """The JSON in `body`; a number that a float would change is a Decimal.

    Raises:
        ValueError: it is not JSON, or nested deeper than `DEEPEST`; the text says which.
    """
    if is_too_deep(body):
        raise ValueError(f"nested deeper than {DEEPEST} levels, or its brackets do not match")
    try:
        return _DECODER.decode(body)
    except msgspec.MsgspecError:
        raise ValueError("not JSON") from None


def _number(text: str) -> float | Decimal:
    as_float, exact = float(text), Decimal(text)
    return as_float if Decimal(repr(as_float)) == exact else exact


_DECODER = msgspec.json.Decoder(float_hook=_number)
_ENCODER = msgspec.json.Encoder(order="deterministic", decimal_format="number")
encode = _ENCODER.encode
"""A value as canonical JSON."""


def digest(value: object) -> bytes:
    """SHA-256 of `value` as canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(encode(value)).digest()


def _first_names(node: Mapping[str, Any]) -> Iterator[str]:
    """The names an expression looks up in the scope itself: what is behind a dot or in a projection looks elsewhere."""
    kind, children = node["type"], node.get("children", [])
    if kind == "field":
        yield node["value"]
    elif kind in {"subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection"}:
        yield from _first_names(children[0])
    elif kind != "expref":
        for child in children:
            yield from _first_names(child)


def _functions(node: Mapping[str, Any]) -> Iterator[str]:
    if node["type"] == "function_expression":
        yield node["value"]
    for child in node.get("children", []):
        if isinstance(child, dict):  # a slice's are numbers
            yield from _functions(child)
