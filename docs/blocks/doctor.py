"""The examinations of `inbox doctor` and their findings, from their registry."""

from __future__ import annotations

from collections.abc import Iterator

from docs.blocks.common import table
from inbox.db.dialect import POSTGRES
from inbox.doctor.registry import examinations
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
    if examination.is_online:
        return "`--online`"
    if len(examination.on) > 1:
        return ""
    return "Postgres" if examination.on[0] == POSTGRES else "SQLite"


def every_finding() -> str:
    """Every kind of finding, by section."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    every = examinations()
    for section in dict.fromkeys(each.section for each in every):
        yield f"### {section}\n"
        yield table(
            ("finding", "severity", "meaning", "why it matters", "what to do"),
            (
                (
                    f"`{kind.name}`",
                    kind.severity,
                    kind.summary,
                    _sentence(kind.why),
                    f"`{kind.mend}`" if kind.mend else "",
                )
                for each in every
                if each.section == section
                for kind in each.kinds
            ),
        )


def _sentence(why: str) -> str:
    return f"{why[:1].upper()}{why[1:]}." if why else ""
