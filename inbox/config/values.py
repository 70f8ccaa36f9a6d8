"""Base class of the file's tables, and values that TOML lacks: durations, rates, addresses and secrets."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import msgspec

from inbox.errors import ConfigError

Unit = Literal["s", "ms", "rfc3339"]
"""Formats of a time: seconds or milliseconds since 1970, or RFC 3339."""

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_SECONDS = 366 * 86400


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file; unknown keys are errors."""


def _parse_seconds(text: object, expected: str) -> float:
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected {expected}, got {text!r}")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


class Duration(float):
    """Seconds, written as `"250ms"`, `"15s"`, `"10m"`, `"2h"` or `"1d"`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Parse a duration.

        Raises:
            ValueError: not a number with a unit, or longer than 366 days.
        """
        seconds = _parse_seconds(text, 'a duration such as "15s", "10m" or "2h"')
        if seconds > _LONGEST_SECONDS:
            raise ValueError(f"expected a duration of at most 366d, got {text!r}")
        return cls(seconds)


_LONGEST_AGE_SECONDS = 100 * 366 * 86400
FOREVER = "forever"


class Age(float):
    """Seconds after which rows are deleted, written as a duration such as `"30d"`; infinite for `"forever"`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Age:
        """Parse an age.

        Raises:
            ValueError: neither a duration nor `forever`, or longer than a hundred years.
        """
        seconds = (
            float("inf") if text == FOREVER else _parse_seconds(text, f'an age such as "30d" or "12h", or "{FOREVER}"')
        )
        if _LONGEST_AGE_SECONDS < seconds < float("inf"):
            raise ValueError(f'expected an age of at most a hundred years, or "{FOREVER}", got {text!r}')
        return cls(seconds)

    @property
    def is_forever(self) -> bool:
        """Return whether rows never expire."""
        return self == float("inf")

    @property
    def shown(self) -> str:
        """Format it as in the file: in whole days, otherwise in hours."""
        if self.is_forever:
            return FOREVER
        return f"{self / 86400:g}d" if self % 86400 == 0 else f"{self / 3600:g}h"


_RATE = re.compile(r"([0-9]{1,9})/(s|m|h|d)")


class Rate(float):
    """Calls per second, written as `"10/s"`, `"600/m"`, `"1000/h"` or `"5000/d"`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Rate:
        """Parse a rate.

        Raises:
            ValueError: not a whole number of calls per unit of time, or zero.
        """
        match = _RATE.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[1]) == 0:
            raise ValueError(f'expected a rate such as "10/s", "600/m" or "1000/h", got {text!r}')
        return cls(int(match[1]) / _UNIT_SECONDS[match[2]])


class _Written(str):
    """A text of a fixed format."""

    __slots__ = ()
    form: ClassVar[re.Pattern[str]]
    expected: ClassVar[str]

    @classmethod
    def parse(cls, text: object) -> Self:
        """Parse it.

        Raises:
            ValueError: it has another format.
        """
        if not isinstance(text, str) or cls.form.fullmatch(text) is None:
            raise ValueError(f"{cls.expected}, got {text!r}")
        return cls(text)


class Address(_Written):
    """A listening address: `"127.0.0.1:9100"`, `"localhost:9100"` or `"[::1]:9100"`."""

    __slots__ = ()
    form = re.compile(
        r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
        r":(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
    )
    expected = 'expected a host and a port such as "127.0.0.1:9100"'

    @property
    def host(self) -> str:
        """Return the host, without the brackets of an IPv6 address."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Return the port."""
        return int(self.rpartition(":")[2])

    @property
    def place(self) -> tuple[str, int]:
        """Return host and port."""
        return self.host, self.port


_MAPPED_BITS = 96
"""Prefix length of `::ffff:0:0/96`, IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2)."""


class Network(str):
    """An address or a network: `"192.0.2.7"`, `"192.0.2.0/24"` or `"2001:db8::/32"`; IPv4-mapped IPv6 becomes IPv4."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Network:
        """Parse a network.

        Raises:
            ValueError: neither an address nor a network, or bits set beyond the prefix length.
        """
        try:
            given = ipaddress.ip_interface(text if isinstance(text, str) else "")
        except ValueError:
            raise ValueError(
                f'expected an address or a network such as "192.0.2.7", "192.0.2.0/24" or "2001:db8::/32", got {text!r}'
            ) from None
        network = given.network
        if given.ip != network.network_address:
            raise ValueError(f"has bits set beyond its prefix length; did you mean {str(network)!r}?")
        mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
        if mapped is not None and network.prefixlen >= _MAPPED_BITS:
            return cls(ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS)))
        return cls(network)


class TopicArn(_Written):
    """The ARN of an Amazon SNS topic: `"arn:aws:sns:eu-west-1:123456789012:orders"`."""

    __slots__ = ()
    form = re.compile(r"arn:(aws|aws-cn|aws-us-gov):sns:([a-z0-9-]{1,40}):[0-9]{12}:[A-Za-z0-9_-]{1,256}", re.ASCII)
    expected = 'expected a topic such as "arn:aws:sns:eu-west-1:123456789012:orders"'

    @property
    def host(self) -> str:
        """Return the SNS host of the topic's region."""
        _, partition, _, region, *_ = self.split(":")
        return f"sns.{region}.amazonaws.com{'.cn' if partition == 'aws-cn' else ''}"


_PLACE = re.compile(r"\s*(env|file)\s*:\s*", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\w+|\$\{.*\}|\$\(.*\)|%\w+%|\{\{.*\}\}", re.DOTALL)
"""Placeholders of shells and templates, which are not expanded here."""
_UNEXPANDED = re.compile(r"~|.*(\{\{|\$[\w{(])", re.DOTALL)


def _check_reference(reference: str) -> None:
    """Reject a text that was meant as a reference, and would otherwise become the secret itself.

    Raises:
        ValueError: it looks like a mistyped reference. The message does not repeat it.
    """
    if_meant = "a secret that really looks like this belongs in a variable or a file"
    if _VARIABLE.fullmatch(reference.strip()):
        raise ValueError(f'is not expanded: this text itself would be the secret; write "env:NAME", and {if_meant}')
    found = _PLACE.match(reference)
    if found is None:
        return
    kind, place = found[1].lower(), reference[found.end() :]
    right = '"env:NAME"' if kind == "env" else '"file:/path"'
    if not reference.startswith(f"{kind}:"):
        raise ValueError(f"would be the secret as it stands; write {right}, with {kind}: in lower case; {if_meant}")
    if found[0] != f"{kind}:" or place != place.strip():
        raise ValueError(f"has spaces around the place that it names; write {right}")
    if _UNEXPANDED.match(place):
        raise ValueError(f"names a place with $, ~ or {{{{ in it, which are not expanded; write {right}")


class Secret:
    """A reference to a secret (`env:NAME`, `file:/path`, or the secret itself), with its validity period.

    `reveal` reads its value; `repr` never shows it.
    """

    __slots__ = ("not_after", "not_before", "reference")

    def __init__(self, reference: str, not_before: datetime | None = None, not_after: datetime | None = None) -> None:
        self.reference = reference
        self.not_before = not_before
        self.not_after = not_after

    @classmethod
    def parse(cls, given: object) -> Secret:
        """Parse a secret: a string, or a table of `value`, `not_before` and `not_after`.

        Raises:
            ValueError: neither of them, an incomplete reference, or an empty validity period. The message never repeats the secret.
        """
        table: dict[object, object]
        match given:
            case str(reference):
                table = {}
            case {"value": str(reference), **table}:
                pass
            case _:
                raise ValueError(
                    'expected "env:NAME", "file:/path" or { value = "env:NAME", not_after = 2027-01-31T00:00:00Z }'
                )
        unknown = set(table) - {"not_before", "not_after"}
        if unknown:
            raise ValueError(f"unknown key {min(map(str, unknown))!r}; a secret has value, not_before and not_after")
        if reference.strip() in {"", "env:", "file:"}:
            raise ValueError('is empty; write "env:NAME" or "file:/path"')
        _check_reference(reference)
        not_before, not_after = _parse_instant(table.get("not_before")), _parse_instant(table.get("not_after"))
        if not_before is not None and not_after is not None and not_before >= not_after:
            raise ValueError("is never valid: not_before must come before not_after")
        return cls(reference, not_before, not_after)

    @property
    def names_a_place(self) -> bool:
        """Return whether the secret is in a variable or a file."""
        return self.reference.startswith(("env:", "file:"))

    def reveal(self, environment: Mapping[str, str] = os.environ, *, at: str = "", as_file: bool = False) -> str:
        """Read the secret; `as_file` keeps a file's surrounding white space, and so its line numbers.

        Raises:
            ConfigError: the variable or file is missing or empty. The message begins with `at`, the key.
        """
        kind, _, place = self.reference.partition(":")
        before = f"{at}: " if at else ""
        if kind == "env":
            value = environment.get(place, "")
            if not value:
                problem = "is empty" if place in environment else "is not set"
                raise ConfigError(
                    f"{before}the environment variable {place} {problem}; the configuration takes a secret from it"
                )
            return value
        if kind == "file":
            try:
                value = Path(place).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
                raise ConfigError(f"{before}can't read the secret in {place}: {error}") from None
            if not value.strip():
                raise ConfigError(f"{before}the secret file {place} is empty")
            return value if as_file else value.strip()
        return self.reference

    def valid_at(self, now: datetime) -> bool:
        """Return whether the secret is valid at `now`: from `not_before` until just before `not_after`."""
        return (self.not_before is None or self.not_before <= now) and (self.not_after is None or now < self.not_after)

    def __repr__(self) -> str:
        return "Secret(…)"


class SchemaName(_Written):
    """The name of a Postgres schema, valid in SQL without quotes, and not a system schema."""

    __slots__ = ()
    form = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
    expected = "a schema has small letters, digits and _, at most 63; not beginning with a digit or pg_"


class DatabaseUrl(str):
    """The database's URL. It may hold a password, so `repr` never shows it."""

    __slots__ = ("is_literal", "origin")

    origin: str
    """The key or variable that it comes from, for messages."""
    is_literal: bool
    """True if it is written in the configuration file itself."""

    def __new__(cls, text: str, origin: str = "[database] url", *, is_literal: bool = True) -> Self:
        """Make one."""
        made = super().__new__(cls, text)
        made.origin, made.is_literal = origin, is_literal
        return made

    @classmethod
    def parse(cls, text: object) -> DatabaseUrl:
        """Parse the file's value: a URL, or a reference to one, as in `Secret`.

        Raises:
            ValueError: not a text, or a mistyped reference.
        """
        if not isinstance(text, str):
            raise ValueError('expected "sqlite:///inbox.db", "postgresql+psycopg://…", "env:NAME" or "file:/path"')  # noqa: TRY004  # as every type here
        Secret.parse(text)
        return cls(text)

    def __repr__(self) -> str:
        return "DatabaseUrl(…)"


def _parse_instant(given: object) -> datetime | None:
    if given is None:
        return None
    if isinstance(given, datetime) and given.tzinfo is not None:
        return given.astimezone(UTC)
    raise ValueError(f"expected a date and time with an offset, such as 2027-01-31T00:00:00Z, got {given}")


Networks = Annotated[list[Network], msgspec.Meta(min_length=1)]
Topics = Annotated[list[TopicArn], msgspec.Meta(min_length=1)]


# --- Headers that a configuration may set on the relay's calls. Pure.


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FRAMING = (
    "host|content-length|transfer-encoding|connection|keep-alive|proxy-.*|accept-encoding|content-encoding|expect|te|trailer"
    "|upgrade|traceparent|webhook-.*|inbox-.*"
)
_OF_AN_ENDPOINT = re.compile(f"{_FRAMING}|idempotency-key", re.IGNORECASE)
_OF_A_CALL = re.compile(f"{_FRAMING}|authorization|cookie|if-none-match", re.IGNORECASE)
"""Headers that frame the message, cause an unreadable response, hold secrets, or belong to the delivery."""


def is_name(name: str) -> bool:
    """Return whether this is a valid header name (RFC 9110 §5.1)."""
    return _NAME.fullmatch(name) is not None


def may_be_set(name: str, *, on_a_call: bool = False) -> bool:
    """Return whether the `headers` of an endpoint, or of a single call, may set this header."""
    forbidden = _OF_A_CALL if on_a_call else _OF_AN_ENDPOINT
    return is_name(name) and forbidden.fullmatch(name) is None


def to_title_case(name: str) -> str:
    """Return the name in Title-Case, so that names that differ only in case become equal."""
    return "-".join(part.capitalize() for part in name.split("-"))
