"""Templates: text with JMESPath expressions in braces, such as `{event.entity_id}` or `{event.entity_id:scim}`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unicodedata import normalize
from urllib.parse import quote, unquote

from inbox.config.mistakes import nearest
from inbox.config.values import is_name, may_be_set, to_title_case
from inbox.errors import ConfigError, MappingError, collect_config_errors
from relay.sync.expressions import Expression, Scope
from relay.sync.forms import FORMS, format_text, is_json, percent_encode

_SEGMENTS = FORMS["path"]
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FORM = re.compile(r":\s*([\w-]*)\s*\Z")
"""The form of a placeholder. No JMESPath expression ends like this: slices end with a bracket, and objects need braces."""
_QUOTES: Mapping[str, str] = {'"': "scim", "'": "odata", "`": "json"}
"""Suggested form for a value between these quotes."""
_LITERAL_PATH = "/:@!$&'()*+,;=~%-._"
_QUERY_IN_A_PATH = re.compile("[\"'`(]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SEPARATOR = re.compile(r"[/\\]")
_LIKE_SLASHES = {0x2044: "/", 0x2215: "/", 0x2216: "\\"}
"""Characters that Windows converts to slashes (bestfit1252.txt), in addition to those with a compatibility mapping."""
_BEHIND_A_NAME = re.compile("[;?#]")
_LONGEST_SHOWN = 200
_LONGEST_IN_A_PATH = 1024
"""Maximum characters in a path. Servers limit path and query to 8 KiB, and encoding may make a value nine times longer."""
_LONGEST_IN_A_QUERY = 64 * 1024
"""Maximum characters in a query, enough for the ids of a listing."""
_MOST_DECODINGS = 8
"""Maximum number of times a path is decoded. Each proxy on the way may decode it once; no real id is encoded more often."""


class Placeholder(Expression):
    """An expression in a template, and the form of its value."""

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        named = _FORM.search(text)
        if named is not None and named[1] not in FORMS:
            raise ConfigError(f"{where}: there is no form {named[1]!r}; {nearest(named[1], FORMS)}")
        super().__init__((text if named is None else text[: named.start()]).strip(), where, known)
        self.form = None if named is None else FORMS[named[1]]


class Template:
    """Text with expressions in braces.

    A placeholder next to other text may be part of another language, such as a filter, where a value could change the
    query. So such a placeholder must name its form.
    """

    longest: int | None = None
    """Maximum characters of a value; None for no limit."""

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        self.text = text
        self.where = where
        pieces = _PLACEHOLDER.split(text)
        around, inner = pieces[::2], pieces[1::2]
        if any(re.search("[{}]", piece) for piece in around):
            raise ConfigError(f"{where}: {text!r} has an unmatched brace")
        made = collect_config_errors(
            {str(at): partial(Placeholder, each, where, known) for at, each in enumerate(inner)}
        )
        placeholders = [*made.values()]
        if wrong := [*_mistakes(text, around, placeholders, is_query=self._is_query(around, placeholders))]:
            raise ConfigError("\n".join(f"{where}: {mistake}" for mistake in wrong))
        self.parts: list[str | Placeholder] = [around[0]]
        for placeholder, behind in zip(placeholders, around[1:], strict=True):
            self.parts += [placeholder, behind]
        self.parts = [part for part in self.parts if part != ""]

    @property
    def placeholders(self) -> list[Placeholder]:
        """The placeholders in order."""
        return [part for part in self.parts if isinstance(part, Placeholder)]

    def looks_into(self, name: str) -> bool:
        """Return True if one of the template's expressions reads this top-level name of the scope."""
        return any(placeholder.looks_into(name) for placeholder in self.placeholders)

    def expand(self, scope: Scope) -> str:
        """Return the text with its values.

        Raises:
            MappingError: an expression finds no value, several values, or a value that its form can't hold.
        """
        return "".join(part if isinstance(part, str) else self._text(part, scope) for part in self.parts)

    def value(self, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        """Expand the template. With a single expression and no other text, the value keeps its type."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Placeholder) and self.parts[0].form is None:
            return self._found(self.parts[0], scope)
        return self.expand(scope)

    def _is_query(self, around: Sequence[str], placeholders: Sequence[Placeholder]) -> bool:
        """Return True if the text may be in a query language."""
        return any(around) or len(placeholders) > 1 or any(each.glue is not None for each in placeholders)

    def _found(self, placeholder: Placeholder, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        value = placeholder.value(scope)
        if value is None:
            raise MappingError(f"{{{placeholder.text}}} has no value", field=self.where)
        if not is_json(value):
            raise MappingError(
                f"{{{placeholder.text}}} is NaN or an infinite number, which JSON can't hold", field=self.where
            )
        return value

    def _text(self, placeholder: Placeholder, scope: Scope) -> str:
        value = self._found(placeholder, scope)
        if isinstance(value, str):
            self._require_short(value, placeholder)
        try:
            text = format_text(value) if placeholder.form is None else placeholder.form.write(value)
        except ValueError as error:
            raise MappingError(f"{{{placeholder.text}}}: the value {error}", field=self.where) from None
        if not isinstance(value, str):
            self._require_short(text, placeholder)
        return text

    def _require_short(self, value: str, placeholder: Placeholder) -> None:
        """Refuse a value that is too long, before any work whose cost grows with its length."""
        if self.longest is not None and len(value) > self.longest:
            raise MappingError(
                f"{{{placeholder.text}}} has {len(value)} characters; at most {self.longest} are allowed here",
                field=self.where,
            )


class QueryTemplate(Template):
    """The value of a query parameter."""

    longest = _LONGEST_IN_A_QUERY


class SearchTemplate(Template):
    """A text in the body of a search. Its value may be a list but not an object: `{"$ne": null}` would be a query."""

    longest = _LONGEST_IN_A_QUERY

    def value(self, scope: Scope) -> Any:  # noqa: ANN401  # whatever the JSON holds
        """Expand the template; MappingError for an object."""
        value = super().value(scope)
        if _has_object(value):
            shown = ", ".join(placeholder.text for placeholder in self.placeholders)
            raise MappingError(f"{{{shown}}} is an object, which could be a query", field=self.where)
        return value


class Path(Template):
    """A path below an endpoint's URL. Values are percent-encoded, including slashes unless their form is `path`."""

    longest = _LONGEST_IN_A_PATH

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        if not text.startswith("/"):
            raise ConfigError(f"{where}: {text!r} must begin with a slash")
        plain = _PLACEHOLDER.sub("x", text)
        if re.search(r"[?#]", plain):
            raise ConfigError(f"{where}: {text!r} must be a path without a query; write the query as params")
        if reason := leads_elsewhere(plain):
            raise ConfigError(f"{where}: {text!r} {reason}; write the intended path")
        super().__init__(text, where, known)
        if any(each.form is _SEGMENTS for each in self.placeholders) and self._is_query([plain], self.placeholders):
            # The endpoint decodes the path before it parses the query, so a quote in the value would end the quoted string.
            raise ConfigError(f"{where}: {text!r} has a value of the form path in a query; use the query's form")
        self.parts = [quote(part, safe=_LITERAL_PATH) if isinstance(part, str) else part for part in self.parts]

    def expand(self, scope: Scope) -> str:
        """Return the path, percent-encoded.

        Raises:
            MappingError: a value is missing or unusable, or a proxy could read the path as that of a different resource.
        """
        path = super().expand(scope)
        if reason := leads_elsewhere(path):
            raise MappingError(
                f"{path[:_LONGEST_SHOWN]!a} {reason}, so it could lead to another resource", field=self.where
            )
        return path

    def _is_query(self, around: Sequence[str], placeholders: Sequence[Placeholder]) -> bool:
        """Return True for a query in a path, such as OData's `/Contacts(ExternalId='…')`."""
        glue = [each.glue or "" for each in placeholders]
        return _QUERY_IN_A_PATH.search("".join([*around, *glue])) is not None

    def _text(self, placeholder: Placeholder, scope: Scope) -> str:
        text = super()._text(placeholder, scope)
        # Otherwise the endpoint could read the path as that of the collection or of another name.
        names = _names(_decode(text))
        has_segments = placeholder.form is _SEGMENTS
        if not (all(names) if has_segments else names[0] and names[-1]):
            problem = "is empty, or begins or ends with a path separator"
            if has_segments:
                problem = "has an empty name between path separators"
            raise MappingError(f"{{{placeholder.text}}} {problem}", field=self.where)
        return text if has_segments else encode_value(text, self.where)


def leads_elsewhere(path: str) -> str | None:
    """Return the reason why the path could lead to another resource, as the end of a sentence; None if it can't.

    Servers and proxies resolve dot segments (RFC 3986 §5.2.4) after decoding: nginx decodes once, others repeatedly, Windows
    accepts backslashes, and Tomcat removes `;parameters`. When Windows converts text to its code page, it turns a fullwidth
    dot or slash, or the fraction slash, into the plain character. In some servers a control
    character ends the path or a header line.
    """
    decoded = _decode(path)
    if unquote(decoded) != decoded:
        return f"is percent-encoded more than {_MOST_DECODINGS} times"
    if _CONTROL.search(decoded):
        return "has a control character"
    likened = decoded if decoded.isascii() else _decode(_fold(decoded).translate(_LIKE_SLASHES))
    return "has a segment . or .." if {".", ".."} & {*_names(decoded), *_names(likened)} else None


def _fold(text: str) -> str:
    """Replace each character with its compatibility equivalent.

    Normalising the whole text could combine a dot or slash with a mark after it. Also, Python sorts a run of marks in
    quadratic time and lets no other thread run meanwhile.
    """
    return text.translate({ord(each): normalize("NFKC", each) for each in set(text)})


def _decode(text: str) -> str:
    """Decode `text` repeatedly. The number of passes is limited, since each takes linear time."""
    for _ in range(_MOST_DECODINGS):
        encoded_text, text = text, unquote(text)
        if text == encoded_text:
            break
    return text


def _names(path: str) -> list[str]:
    """Split a decoded path into names as the strictest server does."""
    return [_BEHIND_A_NAME.split(segment, maxsplit=1)[0].strip() for segment in _SEPARATOR.split(path)]


def _has_object(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(_has_object(inner) for inner in value))


def compile_templates(
    value: object,
    where: str,
    known: Collection[str] | None,
    kind: Callable[[str, str, Any], Template | Expression] = Template,
) -> object:
    """Compile each string in `value`, at any depth, to a template or expression of this kind."""
    if isinstance(value, str):
        return kind(value, where, known)
    if isinstance(value, dict):
        return collect_config_errors(
            {key: partial(compile_templates, inner, f"{where}.{key}", known, kind) for key, inner in value.items()}
        )
    if isinstance(value, list):
        parts = {
            str(position): partial(compile_templates, inner, where, known, kind) for position, inner in enumerate(value)
        }
        return [*collect_config_errors(parts).values()]
    return value


def templates_in(value: object) -> Iterator[Template]:
    """Yield the templates in a value that `compile_templates` made."""
    if isinstance(value, Template):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from templates_in(inner)


def expand_templates(value: object, scope: Scope) -> Any:  # noqa: ANN401  # of the form of `value`
    """Expand a value that `compile_templates` made; MappingError when a template has no value."""
    if isinstance(value, Template | Expression):
        return value.value(scope)
    if isinstance(value, dict):
        return {key: expand_templates(inner, scope) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand_templates(inner, scope) for inner in value]
    return value


def encode_value(text: str, where: str) -> str:
    """Percent-encode `text`.

    Raises:
        MappingError: the text has half of a surrogate pair.
    """
    try:
        return percent_encode(text)
    except ValueError as error:
        raise MappingError(f"the value {error}", field=where) from None


def _mistakes(
    text: str, around: Sequence[str], placeholders: Sequence[Placeholder], *, is_query: bool
) -> Iterator[str]:
    """Yield the mistakes in the placeholders' forms, each with a remedy."""
    for at, placeholder in enumerate(placeholders):
        shown, form = placeholder.text, placeholder.form
        before, behind = "".join(around[: at + 1]), "".join(around[at + 1 :])
        between = _find_open_quote(before, "".join(_QUOTES), "\\")
        if form is not None and form.quote is not None:
            own = _find_open_quote(before, form.quote, form.escape)
            if own or (between and (between != "'" or "'" in behind)):  # an apostrophe in prose
                yield f"{{{shown}}} in {text!r} gets its quotes from its form; remove the {own or between} around it"
        elif form is None and is_query:
            yield (
                f"{{{shown}}} in {text!r} is next to other text, which a value could change; name its form: "
                f"{{{shown}:{_QUOTES.get(between or '', 'scim')}}} without quotes around it, or {{{shown}:text}} if "
                f"that is harmless; valid forms: {', '.join(FORMS)}"
            )


def _find_open_quote(text: str, quotes: str, escape: str) -> str | None:
    """Return the quote that is open at the end of a text."""
    opened: str | None = None
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif opened is not None and character == escape:
            escaped = True
        elif character in quotes:
            opened = character if opened is None else None if opened == character else opened
    return opened


# --- Headers of a call: templates whose values are one line of printable ASCII. Pure.


_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
"""A field value without obs-text (RFC 9110 §5.5): the meaning of other bytes is not standardised."""
_LONGEST = 4096
"""Maximum characters in a value. Servers limit the whole head (nginx to 8 KiB by default); versions and keys are shorter."""


class HeaderTemplate(Template):
    """The value of a header."""

    longest = _LONGEST

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        super().__init__(text, where, known)
        if not self.placeholders:
            self._require_usable(text, ConfigError)
        elif any(isinstance(part, str) and not _is_printable(part) for part in self.parts):
            raise ConfigError(f"{where}: {text!a} has a line break, or a character outside printable ASCII")

    def expand(self, scope: Scope) -> str:
        """Return the value.

        Raises:
            MappingError: a value is missing, or has a character, such as a line break, that a header can't hold.
        """
        value = super().expand(scope)
        self._require_usable(value, partial(MappingError, field=self.where))
        return value

    def _require_usable(self, value: str, error: type[ConfigError] | partial[MappingError]) -> None:
        named = f"{self.where}: " if error is ConfigError else ""
        if len(value) > _LONGEST:
            raise error(f"{named}the header's value is longer than {_LONGEST} characters")
        if _VALUE.fullmatch(value) is None:
            raise error(
                f"{named}the header's value {value[:80]!a} is empty, begins or ends with a space, or has a line break or a "
                "character outside printable ASCII; use the form url if the endpoint decodes it"
            )


def compile_headers(
    headers: Mapping[str, str], where: str, known: Collection[str]
) -> tuple[tuple[str, HeaderTemplate], ...]:
    """Compile the headers of a call, with names in Title-Case.

    Raises:
        ConfigError: a name can't be set or is repeated, or a template is wrong. The text has a line for each mistake.
    """
    made = collect_config_errors({name: partial(_compile, name, headers, where, known) for name in headers})
    return tuple((to_title_case(name), template) for name, template in made.items())


def _compile(name: str, headers: Mapping[str, str], where: str, known: Collection[str]) -> HeaderTemplate:
    if not is_name(name):
        raise ConfigError(f"{where}: {name!a} is not a header name")
    if not may_be_set(name, on_a_call=True):
        raise ConfigError(
            f"{where}: {name!r} can't be set for a single call; secrets belong in auth or headers of the endpoint, and "
            "headers that frame the message are set by the relay"
        )
    if [to_title_case(other) for other in headers].count(to_title_case(name)) > 1:
        raise ConfigError(f"{where}: {name!r} is given twice in different case; keep one")
    return HeaderTemplate(headers[name], f"{where}.{name}", known)


def _is_printable(text: str) -> bool:
    return all(" " <= character <= "~" or character == "\t" for character in text)
