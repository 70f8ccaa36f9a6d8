"""Headers of a single call: templates whose values are one line of printable ASCII. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial

from inbox.config.headers import is_name, may_be_set, titled
from inbox.errors import ConfigError, MappingError, collect_config_errors
from relay.sync.expressions import Scope
from relay.sync.templates import Template

_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
"""A field value without obs-text (RFC 9110 §5.5): other bytes have no meaning that both sides agree on."""
_LONGEST = 4096
"""Servers limit a whole head to 8 KiB, nginx by default. A longer value is no version or key."""


class HeaderTemplate(Template):
    """The value of a header."""

    longest = _LONGEST

    def __init__(self, text: str, where: str, known: Collection[str]) -> None:
        super().__init__(text, where, known)
        if not self.placeholders:
            self._require_usable(text, ConfigError)
        elif any(isinstance(part, str) and not _is_printable(part) for part in self.parts):
            raise ConfigError(f"{where}: {text!a} has a line break, or a character beyond printable ASCII")

    def expand(self, scope: Scope) -> str:
        """Return the value.

        Raises:
            MappingError: a value is missing, or a header can't hold it: it could end the line and begin another header.
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
                "character beyond printable ASCII; give the placeholder the form url where the other side decodes it"
            )


def compile_headers(
    headers: Mapping[str, str], where: str, known: Collection[str]
) -> tuple[tuple[str, HeaderTemplate], ...]:
    """Compile the headers of a call, with names in Title-Case.

    Raises:
        ConfigError: a name can't be set, is there twice, or a template is wrong. The text has a line for each mistake.
    """
    made = collect_config_errors({name: partial(_compile, name, headers, where, known) for name in headers})
    return tuple((titled(name), template) for name, template in made.items())


def _compile(name: str, headers: Mapping[str, str], where: str, known: Collection[str]) -> HeaderTemplate:
    if not is_name(name):
        raise ConfigError(f"{where}: {name!a} is not a header's name")
    if not may_be_set(name, on_a_call=True):
        raise ConfigError(
            f"{where}: {name!r} can't be set for a single call; secrets belong in auth or headers of the endpoint, and "
            "headers that frame the message are set by the relay"
        )
    if [titled(other) for other in headers].count(titled(name)) > 1:
        raise ConfigError(f"{where}: {name!r} is there twice, in another case; keep one")
    return HeaderTemplate(headers[name], f"{where}.{name}", known)


def _is_printable(text: str) -> bool:
    return all(" " <= character <= "~" or character == "\t" for character in text)
