"""Names of the headers that a configuration may set on the relay's calls. Pure."""

from __future__ import annotations

import re

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FRAMING = (
    "host|content-length|transfer-encoding|connection|keep-alive|proxy-.*|accept-encoding|content-encoding|expect|te|trailer"
    "|upgrade|traceparent|webhook-.*|inbox-.*"
)
_OF_AN_ENDPOINT = re.compile(f"{_FRAMING}|idempotency-key", re.IGNORECASE)
_OF_A_CALL = re.compile(f"{_FRAMING}|authorization|cookie|if-none-match", re.IGNORECASE)
"""Headers that frame the message, cause an answer that can't be read here, hold secrets, or belong to the delivery."""


def is_name(name: str) -> bool:
    """Return True for a header's name (RFC 9110 §5.1)."""
    return _NAME.fullmatch(name) is not None


def may_be_set(name: str, *, on_a_call: bool = False) -> bool:
    """Return True for a header that an endpoint's `headers` may set, or those of a single call."""
    forbidden = _OF_A_CALL if on_a_call else _OF_AN_ENDPOINT
    return is_name(name) and forbidden.fullmatch(name) is None


def titled(name: str) -> str:
    """Return the name in Title-Case, so that names that differ in case alone are equal."""
    return "-".join(part.capitalize() for part in name.split("-"))
