"""The reason why the database did not do its work, in one readable line: for a person, or a log."""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import LONGEST_ERROR_TEXT, failure_of, is_lock_wait
from inbox.db.parameters import storable

_NO_RIGHT = "42501"
_HINT = re.compile(r"\s*Is the server running [^?]*\?|\(Background on this error at: [^)]*\)")
"""A question of libpq, and addresses of SQLAlchemy's pages: neither tells a reason."""


def trouble_text(error: BaseException) -> str:
    """Word an error of the database or of the way to it.

    libpq writes several lines with tabs about a connection, and no password. Of a statement's error only the first line is
    shown, as in `error_text`: further ones may hold values. So may any other exception, of which only the type is shown.
    """
    is_of_driver = isinstance(error, DBAPIError)
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    failure = failure_of(error)
    if failure == "fault" and not is_of_driver:
        return type(cause).__name__
    words = str(cause).strip()
    is_of_statement = isinstance(cause, sqlite3.Error) or getattr(cause, "sqlstate", None) is not None
    if failure != "unreachable" or is_of_statement:
        words = words.partition("\n")[0]
    line = " ".join(_HINT.sub("", words).split())
    return storable(line[:LONGEST_ERROR_TEXT]) or type(cause).__name__


def remedy(error: DBAPIError) -> str:
    """Return the end of a sentence for a person at a terminal, with a semicolon: what to do now; empty where the text says it."""
    if getattr(error.orig, "sqlstate", None) == _NO_RIGHT:
        return "; this login lacks the right: use one whose role has it (docs/how-to/limit-what-roles-may-do.md)"
    if is_lock_wait(error):
        return "; another session holds a lock: try again, and if it lasts, look for it with `inbox doctor`"
    return ""
