"""What the head of a request may be: RFC 9112's rules that the parser leaves open, and how much of it there may be.

The parser (llhttp, strict) refuses what no HTTP/1 message can hold. What two servers on the way could understand
differently is refused here: a request that means one thing to a proxy and another to us is how requests are smuggled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from inbox.errors import ExpectationFailed, HeadTooLarge, TargetTooLong, Unreadable

LONGEST_TARGET = 4096
"""Bytes of path and query; senders' URLs have a source's name and a token."""

MOST_FIELDS = 100
"""Header fields, trailers included."""

LONGEST_FIELD = 8192
"""Bytes of one header field."""

LARGEST_HEAD = 32 * 1024
"""Bytes of all header fields together."""

VERSIONS = frozenset({"1.1", "1.0"})

_ONCE = frozenset({b"host", b"content-type", b"transfer-encoding", b"expect"})
"""Fields whose second one would have to be guessed between; the parser itself sees to Content-Length."""

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]{2,}\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)/.*", re.DOTALL | re.IGNORECASE)


class Tally:
    """Counts what has come of one request's head, so that nobody can make it larger than it may be."""

    __slots__ = ("_bytes", "_fields")

    def __init__(self) -> None:
        self._bytes = 0
        self._fields = 0

    def add(self, name: bytes, value: bytes) -> None:
        """Count one more field.

        Raises:
            HeadTooLarge: it is one too many, or too long, or all of them are.
        """
        size = len(name) + len(value) + 4  # ": " and the end of the line
        self._bytes += size
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise HeadTooLarge(f"a request may have at most {MOST_FIELDS} header fields")
        if size > LONGEST_FIELD:
            raise HeadTooLarge(f"a header field may have at most {LONGEST_FIELD} bytes")
        if self._bytes > LARGEST_HEAD:
            raise HeadTooLarge(f"all header fields together may have at most {LARGEST_HEAD} bytes")


def check_target(target: bytes) -> None:
    """Look at as much of a request's target as has come.

    Raises:
        TargetTooLong: it is longer than `LONGEST_TARGET`.
    """
    if len(target) > LONGEST_TARGET:
        raise TargetTooLong(f"the request's target may have at most {LONGEST_TARGET} bytes")


def check(version: str, target: bytes, fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Look at a whole head; names of fields are in lower case.

    Raises:
        Unreadable: it can be read in more than one way, or in none.
        ExpectationFailed: it expects something other than `100-continue`.
    """
    if version not in VERSIONS:
        raise Unreadable("neither HTTP/1.1 nor HTTP/1.0")
    once: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _ONCE:
            if name in once:
                raise Unreadable(f"there is more than one {name.decode().title()}")
            once[name] = value
    host = once.get(b"host")
    if host is None:
        if version == "1.1":
            raise Unreadable("there is no Host")  # RFC 9112 §3.2 asks for 400
    elif not _HOST.fullmatch(host):
        raise Unreadable("Host is not the name of one")
    coding = once.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
        raise Unreadable("the only Transfer-Encoding is chunked, and in HTTP/1.0 there is none")
    if once.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise ExpectationFailed("nothing can be expected but 100-continue")
    _check_form(target, host)


def _check_form(target: bytes, host: bytes | None) -> None:
    if b"#" in target:
        raise Unreadable("a fragment is no part of a request's target")
    if target.startswith(b"//"):
        raise Unreadable("what stands behind two slashes can be taken for a host")  # RFC 3986 §4.2
    if target.startswith(b"/"):
        return
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise Unreadable("the request's target is no path")
    if host is not None and absolute[1].lower() != host.lower():
        raise Unreadable("the request's target names another host than Host does")
