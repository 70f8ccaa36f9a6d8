"""The reason why the database did not do its work, in one readable line: for a person, or a log."""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy.exc import DBAPIError

from inbox.db.dialect import LONGEST_ERROR_TEXT, failure_of, storable

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
