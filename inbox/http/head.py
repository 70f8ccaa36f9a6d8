"""Rules for request heads: those of RFC 9112 that the parser does not enforce, and size limits.

The parser (llhttp, strict) rejects invalid HTTP/1. This module also rejects heads that two servers could read
differently: a request that means one thing to a proxy and another to us allows request smuggling.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from inbox.errors import ExpectationFailed, HeadTooLarge, RequestError, TargetTooLong, Unreadable

LONGEST_TARGET = 4096
"""Maximum bytes of path and query, unless a server allows more; senders' URLs hold a source's name and a token."""

MOST_FIELDS = 100
"""Maximum number of header fields."""

LONGEST_FIELD = 8192
"""Maximum bytes of one header field."""

LARGEST_HEAD = 32 * 1024
"""Maximum bytes of all header fields together."""

VERSIONS = frozenset({"1.1", "1.0"})

_ONCE = frozenset({b"host", b"content-type", b"transfer-encoding", b"expect"})
"""Fields that may occur only once, as two would be ambiguous; the parser checks Content-Length."""

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]{2,}\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)/.*", re.DOTALL | re.IGNORECASE)


def make_unfinished_error(target: bytes, longest_target: int = LONGEST_TARGET) -> RequestError:
    """Return the error for an unfinished head larger than `LARGEST_HEAD`."""
    if len(target) > longest_target:
        return _target_too_long(longest_target)
    return HeadTooLarge("a head, or a chunk header or trailer, does not end")


def _target_too_long(longest: int) -> RequestError:
    return TargetTooLong(f"the request's target may have at most {longest} bytes")


def check_size(target: bytes, fields: Sequence[tuple[bytes, bytes]], longest_target: int = LONGEST_TARGET) -> None:
    """Check the size of a head and its fields.

    Raises:
        TargetTooLong: its target has more than `longest_target` bytes.
        HeadTooLarge: one field or all fields together are too long.
    """
    if len(target) > longest_target:
        raise _target_too_long(longest_target)
    sizes = [len(name) + len(value) + 4 for name, value in fields]  # with ": " and the end of the line
    if sum(sizes) > LARGEST_HEAD:
        raise HeadTooLarge(f"all header fields together may have at most {LARGEST_HEAD} bytes")
    if sizes and max(sizes) > LONGEST_FIELD:
        raise HeadTooLarge(f"a header field may have at most {LONGEST_FIELD} bytes")


def check(version: str, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Check the contents of a head, whose field names are in lower case.

    Raises:
        HeadTooLarge: it has too many fields.
        Unreadable: it is malformed or ambiguous.
        ExpectationFailed: it expects something other than `100-continue`.
    """
    if version not in VERSIONS:
        raise Unreadable("neither HTTP/1.1 nor HTTP/1.0")
    if len(fields) > MOST_FIELDS:
        raise HeadTooLarge(f"a request may have at most {MOST_FIELDS} header fields")
    values = dict(fields)
    if len(values) != len(fields):
        _check_repeats(fields)
    host = values.get(b"host")
    if host is None:
        if version == "1.1":
            raise Unreadable("there is no Host")  # RFC 9112 §3.2 asks for 400
    elif not _is_host(host):
        raise Unreadable("Host is not a valid host name")
    if b"transfer-encoding" in values and (values[b"transfer-encoding"].lower() != b"chunked" or version == "1.0"):
        raise Unreadable("the only supported Transfer-Encoding is chunked, and HTTP/1.0 has none")
    if b"expect" in values and values[b"expect"].lower() != b"100-continue":
        raise ExpectationFailed("only 100-continue can be expected")
    _check_form(target, host)


def _check_repeats(fields: Sequence[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in fields]
    for name in _ONCE:
        if names.count(name) > 1:
            raise Unreadable(f"there is more than one {name.decode().title()}")


@functools.lru_cache(maxsize=64)  # a receiver has few spellings of its host
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def _check_form(target: bytes, host: bytes | None) -> None:
    if b"#" in target:
        raise Unreadable("a request's target must not have a fragment")
    if target.startswith(b"/"):
        if target.startswith(b"//"):
            raise Unreadable("a path after two slashes can be taken for a host")  # RFC 3986 §4.2
        return
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise Unreadable("the request's target is not a path")
    if host is not None and absolute[1].lower() != host.lower():
        raise Unreadable("the request's target and Host name different hosts")
