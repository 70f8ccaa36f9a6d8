"""The figures that the product is judged by, with the last measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import msgspec

from benchmarks.results import Figure, Results, is_met
from benchmarks.rows import COMMANDS, ROWS
from docs.blocks.common import ROOT, format_table

_LATEST = ROOT / "benchmarks" / "results" / "latest.json"


def list_figures() -> str:
    """Tabulate the figures with their bars and commands, and with the measurements of a committed run."""
    results = msgspec.json.decode(_LATEST.read_bytes(), type=Results) if _LATEST.exists() else None
    heads = ("figure", "bar", "aim", "command")
    rows = []
    for name, row in ROWS.items():
        limit = "at most " if row.is_limit else ""
        command = COMMANDS[row.command]
        cells = [row.what, f"{limit}{row.bar:g} {row.unit}".strip(), f"{row.better:g}"]
        if results is not None:
            found = results.rows.get(name, Figure(missing="not measured"))
            cells.append(
                found.missing or ""
                if found.figure is None
                else _format_figure(found.figure, met=is_met(row, found.figure, row.bar))
            )
        rows.append([*cells, f"`{' '.join((f'benchmarks.{command.module}', *command.options))}`"])
    if results is None:
        return format_table(heads, rows)
    when = f"Measured on {results.at}: {results.machine['processors']} processors, Python {results.machine['python']}."
    curves = list(_find_curves(results))
    ends = format_table(("growing", "first point", "last point", "last / first"), curves) + "\n" if curves else ""
    charts = "\n".join(
        f"![{chart.stem.replace('-', ' ')}](../../benchmarks/results/{chart.name})"
        for chart in sorted(_LATEST.parent.glob("*.svg"))
    )
    return f"{format_table((*heads[:3], 'measured', heads[3]), rows)}\n{when}\n\n{ends}{charts}\n"


def _find_curves(results: Results) -> Iterator[tuple[str, ...]]:
    """Yield a row for each measured curve, with medians over the rounds."""
    for printed in results.printed.values():
        if isinstance(printed, dict) and len(points := printed.get("points", ())) > 1:
            (at, first), (there, last) = (
                (each["at"], statistics.median(each["rounds"])) for each in (points[0], points[-1])
            )
            ends = (f"{rate:,.0f} {printed['unit']} at {place:,}" for place, rate in ((at, first), (there, last)))
            yield printed["title"], *ends, f"{last / first:.2f}"


def _format_figure(figure: float, *, met: bool) -> str:
    return f"{figure:g}" if met else f"{figure:g} (missed)"
