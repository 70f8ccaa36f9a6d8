"""Figures from the commands' output, and their comparison with committed ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import jmespath
import msgspec

from benchmarks.rows import Row

MOST_FALL = 0.25
"""Tolerated loss, as a fraction of the committed figure."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A measured row: median, minimum and maximum of the rounds, or the reason for a missing figure."""

    figure: float | None = None
    low: float | None = None
    high: float | None = None
    ours: float | None = None
    """Medians of both sides of a ratio, in the unit of the command."""
    theirs: float | None = None
    rounds: int = 0
    missing: str | None = None


class Results(msgspec.Struct, frozen=True):
    """A run of `python -m benchmarks`."""

    at: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    rows: Mapping[str, Figure]
    printed: Mapping[str, Any]
    """JSON output by command, or the reason for its failure."""


def figure_of(row: Row, printed: Any) -> Figure:  # noqa: ANN401  # whatever JSON a command prints
    """Find a row's figure in the output of its command, or in the reason for its failure."""
    if isinstance(printed, str):
        return Figure(missing=printed)
    ours = _rounds(row.ours, printed)
    if not ours:
        return Figure(missing="not measured")
    if row.theirs is None:
        return _summary(ours)
    theirs = _rounds(row.theirs, printed)
    if not theirs:
        return Figure(missing="the other side is missing")
    if len(ours) != len(theirs) or 0 in theirs:
        return Figure(missing=f"{len(ours)} rounds against {len(theirs)}, or a rate of 0")
    found = _summary([mine / other for mine, other in zip(ours, theirs, strict=True)])
    return msgspec.structs.replace(found, ours=statistics.median(ours), theirs=statistics.median(theirs))


def _rounds(expression: str, printed: Any) -> list[float]:  # noqa: ANN401  # as above
    found = jmespath.search(expression, printed)
    values = found if isinstance(found, list) else [found]
    return [float(value) for value in values if type(value) in (int, float) and math.isfinite(value)]


def _summary(values: list[float]) -> Figure:
    return Figure(_short(statistics.median(values)), _short(min(values)), _short(max(values)), rounds=len(values))


def _short(value: float) -> float:
    return round(value, 3) if value < 10 else round(value, 1)


def is_met(row: Row, figure: float, limit: float) -> bool:
    """Return whether a figure reaches a limit, such as the row's bar."""
    return figure <= limit if row.is_limit else figure >= limit


def falls(rows: Mapping[str, Row], measured: Mapping[str, Figure], committed: Mapping[str, Figure]) -> dict[str, str]:
    """Compare with committed figures.

    Returns:
        By row, a sentence for each that is worse by more than a quarter, or is not measured any more.
    """
    found = {}
    for name, before in committed.items():
        if before.figure is None or name not in rows:
            continue
        now = measured.get(name, Figure(missing="not measured"))
        if now.figure is None:
            found[name] = f"{now.missing}; {before.figure:g} is committed"
        elif not is_met(rows[name], now.figure, _least(rows[name], before.figure)):
            found[name] = f"{now.figure:g}, but {before.figure:g} is committed"
    return found


def _least(row: Row, figure: float) -> float:
    return figure / (1 - MOST_FALL) if row.is_limit else figure * (1 - MOST_FALL)
