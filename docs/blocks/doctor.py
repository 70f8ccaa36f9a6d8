"""The examinations of `inbox doctor` and their findings, from their registry."""

from __future__ import annotations

from collections.abc import Iterator

from docs.blocks.common import table
from relay.doctor.examinations import EXAMINATIONS


def every_examination() -> str:
    """Every examination: what it looks at, and where."""
    return table(
        ("examination", "looks at", "kinds of findings"),
        (
            (f"`{each.name}`", each.examine.__doc__ or "", ", ".join(f"`{kind.name}`" for kind in each.kinds))
            for each in EXAMINATIONS
        ),
    )


def every_finding() -> str:
    """Every kind of finding, by examination."""
    return "\n".join(_tables())


def _tables() -> Iterator[str]:
    for each in EXAMINATIONS:
        yield f"### {each.name.capitalize()}\n"
        yield table(
            ("finding", "level", "meaning", "what to do"),
            (
                (
                    f"`{kind.name}`",
                    kind.level,
                    kind.meaning,
                    f"`{kind.remedy}`" if kind.remedy else "",
                )
                for kind in each.kinds
            ),
        )
