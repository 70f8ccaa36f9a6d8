"""Masks secrets in what is kept of calls and their answers. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

EXCERPT_BYTES = 4096
_SHORTEST_SECRET = 4
"""Masking a shorter secret would black out half of an excerpt and hide nothing."""
_LOOKED_FOR = 64
"""Characters searched of a secret that another system chose: for 2,000, in all spellings, a search blocked all threads for 3 s."""
_WINDOW = 4 * EXCERPT_BYTES
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Postgres can't store a NUL; the others control a terminal. The last two ranges change the direction of text."""
_SENSITIVE = re.compile(
    r"""((?:token|passwd|password|pwd|secret|authorization|api[_-]?key|cookie|credential|signature)[\w-]{0,40}
        [\\"']{0,4}\s{0,8}[:=]\s{0,8})
        (?: "(?:[^"\\]|\\.)*"?                          # a JSON string, perhaps cut short
          | \\"[^"]*"?                                  # one inside another
          | [\[{][^\]}]*[\]}]?                          # a list or an object of them
          | (?:(?:bearer|basic)\s+)?[^\s,;&"'<>}\]]+    # a form's, a header's
        )""",
    re.IGNORECASE | re.VERBOSE,
)
MASK = "***"


def name_only(pair: str) -> str:
    """Return a pair of a query without its value, which may be a secret."""
    name, equals, _ = pair.partition("=")
    return f"{name}=…" if equals else "…"


class Redactor:
    """Makes excerpts of answers. It masks the endpoint's own secrets, and every value whose key names a secret."""

    def __init__(self, secrets: Iterable[str], issued: str = "") -> None:
        """Compile the patterns; `issued` is a secret that another system chose, however long."""
        self._secrets = frozenset(secrets)
        patterns: set[str] = set()
        for secret in self._secrets:
            patterns |= _patterns(secret)
        if len(issued) > _LOOKED_FOR:
            patterns |= _patterns(issued[:_LOOKED_FOR], and_on=_FURTHER if _QUOTES.isdisjoint(issued) else r"\S*")
        else:
            patterns |= _patterns(issued)
        longest_first = sorted(patterns, key=len, reverse=True)
        self._own = re.compile("|".join(longest_first)) if longest_first else None

    def besides(self, secret: str) -> Redactor:
        """Return a redactor that also masks this secret, which another system chose."""
        return Redactor(self._secrets, secret)

    def excerpt(self, body: bytes) -> str | None:
        """Return the beginning of `body`, at most 4 KiB of UTF-8; None when it is empty.

        The endpoint's own secrets are masked before the cut, so that no half of one is left at the edge.
        """
        text = body.decode("utf-8", "replace")
        if self._own is not None:
            text = self._own.sub(MASK, text)
        text = _SENSITIVE.sub(rf"\1{MASK}", text[:_WINDOW])
        text = _UNPRINTABLE.sub("\ufffd", text)
        return text.encode()[:EXCERPT_BYTES].decode("utf-8", "ignore") or None


_QUOTES = frozenset("\"'<>")
_FURTHER = r"[^\s\"'<>]*"
"""The rest of a secret whose beginning was found, and perhaps a little more."""


def _patterns(secret: str, and_on: str = "") -> set[str]:
    """Return patterns for every encoding of a secret; `and_on` matches its rest."""
    if len(secret) < _SHORTEST_SECRET:
        return set()
    base64_end = and_on or "[A-Za-z0-9+/_-]?={0,2}"
    return {_spelled(secret) + and_on, *(_spelled(part) + base64_end for part in _in_base64(secret))}


def _spelled(secret: str) -> str:
    """Return a pattern for every way in which JSON, URLs and HTML write it, nested ones too."""
    once = re.sub(r"\\+", r"\\", secret)  # a run of backslashes is matched as one: there would be too many ways
    return "".join(char if char.isascii() and char.isalnum() else _spelled_char(char) for char in once)


def _spelled_char(char: str) -> str:
    units = char.encode("utf-16-be").hex()
    escaped = r"\\{1,15}u".join(units[start : start + 4] for start in range(0, len(units), 4))
    plain = "|".join((f"u{escaped}", re.escape(char), *_ALIKE.get(char, ())))
    percent = "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in char.encode())
    entity = f"&(?:amp;){{0,3}}(?:#0*{ord(char)}|#x0*{ord(char):x}|{_ENTITIES.get(char, 'none')});"
    if char == "\\":
        return f"(?i:{percent}|{entity}|{plain}){{1,60}}+"
    return rf"(?i:{percent}|{entity}|\\{{0,15}}(?:{plain}))"


def _in_base64(secret: str) -> Iterator[str]:
    """Yield its form in the base64 of any text that holds it, for each of the three offsets."""
    data = secret.encode()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        yield whole[(before * 8 + 5) // 6 : (before + len(data)) * 8 // 6]


_ALIKE = {" ": (r"\+",), "+": ("-",), "/": ("_",), "\t": ("t",)}
"""Spellings in forms, in base64 for URLs, and in JSON."""
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
