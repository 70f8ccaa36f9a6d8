"""The rule that a reason has a letter or a digit, as SQL: `inbox.events.commands.says_why` has it for Python."""

from __future__ import annotations

from inbox.db.dialect import POSTGRES
from inbox.events.commands import SAYS_NOTHING


def says_nothing(column: str, dialect: str) -> str:
    """Return the condition that a text gives no reason."""
    # by their codes: blanks, and what the driver of Postgres would take for the beginning of a parameter
    coded = r"E' \t\n\r' || chr(37)" if dialect == POSTGRES else "' ' || char(9, 10, 13, 37)"
    others = "".join(sorted(set(SAYS_NOTHING) - set(" \t\n\r%"))).replace("'", "''")
    return f"trim({column}, {coded} || '{others}') = ''"
