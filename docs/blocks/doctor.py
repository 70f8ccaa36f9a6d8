"""The examinations of `inbox doctor` and their findings, from their registry."""

from __future__ import annotations

from docs.blocks.common import format_table
from relay.doctor.examinations import EXAMINATIONS


def list_examinations() -> str:
    """Tabulate the examinations with their subjects and findings."""
    return format_table(
        ("examination", "looks at", "findings"),
        (
            (f"`{each.name}`", each.examine.__doc__ or "", ", ".join(f"`{kind.name}`" for kind in each.kinds))
            for each in EXAMINATIONS
        ),
    )


def list_findings() -> str:
    """Tabulate the kinds of findings, in the order of their examinations."""
    return format_table(
        ("finding", "level", "meaning", "fix"),
        (
            (f"`{kind.name}`", kind.level, kind.meaning, f"`{kind.remedy}`" if kind.remedy else "")
            for each in EXAMINATIONS
            for kind in each.kinds
        ),
    )
