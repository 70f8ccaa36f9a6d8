"""Limits of numbers in JSON, for webhooks and for everything that the relay reads.

A number is at most `LONGEST` characters long and has a magnitude that a 64-bit float holds. Beyond that, parsers disagree:
one reads infinity or zero, another the exact number, and a third fails with its own error when the number is used.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

LONGEST = 1000
"""Characters. Reading a number is quadratic in its length, and Python itself refuses more than 4,300 digits."""

_TOO_LONG = f"has more than {LONGEST} characters"
_NOT_ZERO = re.compile("[^eE]*[1-9]")
"""A digit other than 0 before the exponent."""

_AS_DIGITS = bytes.maketrans(b"0123456789+-.eE", b"000000000000000")
_LONG = b"0" * (LONGEST + 1)


def integer(text: str) -> int:
    """Parse a whole number.

    Raises:
        ValueError: it is too long; the message continues the words `a number`.
    """
    if len(text) > LONGEST:
        raise ValueError(_TOO_LONG)
    return int(text)


def real(text: str) -> float:
    """Parse a number with a fraction or an exponent to the nearest float.

    Raises:
        ValueError: it is too long, too large, or rounds to 0; the message continues the words `a number`.
    """
    if len(text) > LONGEST:
        raise ValueError(_TOO_LONG)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("is too large for a 64-bit float")
    if number == 0 and _NOT_ZERO.match(text):
        raise ValueError("is too small for a 64-bit float")
    return number


def exact(text: str) -> float | Decimal:
    """Parse a number as `real` does, but to a Decimal where the float would differ.

    Raises:
        ValueError: as `real`. Its bounds keep the exponent far from where Decimal raises ArithmeticError.
    """
    number = real(text)
    if number == 0:
        return number  # an exponent behind a 0 has no bounds
    decimal = Decimal(text)
    return number if Decimal(repr(number)) == decimal else decimal


def may_be_too_long(body: bytes) -> bool:
    """Return whether so many characters of numbers stand in a row, perhaps in a string. It takes two passes in C."""
    return _LONG in body.translate(_AS_DIGITS)
