"""The examinations of `inbox doctor` and their findings, from their registry."""

from __future__ import annotations

from collections.abc import Iterator

from docs.blocks.common import table
from inbox.db.dialect import POSTGRES
from inbox.doctor.run import examinations
from inbox.examination import Examination


def every_examination() -> str:
    """Every examination: what it looks at, and where."""
    return table(
        ("examination", "looks at", "only on", "kinds of findings"),
        (
            (f"`{each.name}`", each.looks_at, _where(each), ", ".join(f"`{kind.name}`" for kind in each.kinds))
            for each in examinations()
        ),
    )


def _where(examination: Examination) -> str:
    if len(examination.on) > 1:
        return ""
    return "Postgres" if examination.on[0] == POSTGRES else "SQLite"


def every_finding() -> str:
    """Every kind of finding, by examination."""
    return "\n".join(_tables())


def _tables() -> Iterator[str]:
    for each in examinations():
        yield f"### {each.name.capitalize()}\n"
        yield table(
            ("finding", "level", "meaning", "why it matters", "what to do"),
            (
                (
                    f"`{kind.name}`",
                    kind.level,
                    kind.meaning,
                    _sentence(kind.why),
                    f"`{kind.remedy}`" if kind.remedy else "",
                )
                for kind in each.kinds
            ),
        )


def _sentence(why: str) -> str:
    return f"{why[:1].upper()}{why[1:]}." if why else ""
