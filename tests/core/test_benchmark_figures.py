"""Figures of `python -m benchmarks`: found in what a command prints, and compared with committed ones."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import jmespath
import msgspec
import pytest
import typer

import benchmarks.__main__ as bench
from benchmarks import support
from benchmarks.results import Figure, Results, falls, figure_of
from benchmarks.rows import COMMANDS, ROWS, Command, Row
from docs.blocks import figures
from tests.helpers.waiting import until

RATIO = Row("a rate", "command", "sides[0].rounds", "sides[1].rounds", bar=1.0, better=2.0)
LIMIT = Row("a time", "command", "longest", None, bar=250, better=100, unit="ms", is_limit=True)


def printed(*rounds: list[float]) -> dict[str, Any]:
    return {"sides": [{"rounds": some} for some in rounds]}


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    figure = figure_of(RATIO, printed([10, 30, 90], [10, 10, 10]))
    assert figure == Figure(figure=3.0, low=1.0, high=9.0, ours=30, theirs=10, rounds=3)
    # The ratio of the medians would be 1: a slow round is slow for both sides.
    assert figure_of(RATIO, printed([1, 10, 10], [1, 5, 100])).figure == 1.0


def test_a_figure_without_another_side_is_its_median() -> None:
    assert figure_of(LIMIT, {"longest": 143.04}) == Figure(figure=143.0, low=143.0, high=143.0, rounds=1)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("failed with 1: no room", "failed with 1: no room"),
        (printed([1, 2], []), "the other side is missing"),
        (printed([1, 2]), "the other side is missing"),
        ({}, "not measured"),
        ([], "not measured"),
        (printed([1, 2], [1]), "2 rounds against 1, or a rate of 0"),
        (printed([1], [0]), "1 rounds against 1, or a rate of 0"),
        (printed([True], [1.0]), "not measured"),
        (printed([float("nan")], [1.0]), "not measured"),
    ],
)
def test_what_is_not_there_is_said(found: Any, reason: str) -> None:  # noqa: ANN401
    assert figure_of(RATIO, found) == Figure(missing=reason)


@pytest.mark.parametrize(
    ("row", "now", "committed", "has_fallen"),
    [
        (RATIO, 0.75, 1.0, False),
        (RATIO, 0.74, 1.0, True),
        (RATIO, 9.0, 1.0, False),
        (LIMIT, 133.0, 100.0, False),
        (LIMIT, 134.0, 100.0, True),
        (LIMIT, 1.0, 100.0, False),
    ],
)
def test_a_fall_of_more_than_a_quarter_is_found(row: Row, now: float, committed: float, has_fallen: bool) -> None:
    fallen = falls({"row": row}, {"row": Figure(figure=now)}, {"row": Figure(figure=committed)})
    assert (fallen == {"row": f"{now:g}, but {committed:g} is committed"}) == has_fallen
    assert bool(fallen) == has_fallen


def test_a_committed_figure_that_is_not_measured_any_more_is_a_fall() -> None:
    committed = {"row": Figure(figure=2.0), "gone": Figure(figure=1.0), "never": Figure(missing="no redis-server")}
    assert falls({"row": RATIO, "never": RATIO}, {}, committed) == {"row": "not measured; 2 is committed"}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_has_a_command_and_bars_on_its_better_side(row: Row) -> None:
    assert row.command in COMMANDS
    assert row.better <= row.bar if row.is_limit else row.better >= row.bar
    for expression in (row.ours, row.theirs or "x"):
        jmespath.compile(expression)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_starts_with_its_options(command: Command, quick: bool) -> None:
    """Its options are parsed as the program parses them; to measure takes minutes."""
    module = importlib.import_module(f"benchmarks.{command.module}")
    app: typer.Typer = getattr(module, "app", None) or typer.Typer()
    if not hasattr(module, "app"):
        app.command()(module.main)
    program, arguments = typer.main.get_command(app), bench.command_line(command, quick=quick)[3:]
    if hasattr(program, "commands"):
        program = program.commands[arguments.pop(0)]
    with program.make_context(command.module, arguments) as context:
        assert context.params["as_json"] is True


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("print('{}')", {}),
        ("print('{}'); raise SystemExit(1)  # it has missed its bar", {}),
        ("raise SystemExit('no disk')", "failed with 1: no disk"),
        ("import os; os.kill(os.getpid(), 9)", "failed with -9: no message"),
        ("import time; time.sleep(60)", "not done after 0.5 s"),
    ],
)
def test_a_command_that_fails_says_why(program: str, result: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(bench, "command_line", lambda *_, **__: [sys.executable, "-S", "-c", program])
    monkeypatch.setattr(bench, "LONGEST_SECONDS", 0.5 if "sleep" in program else 60)
    assert bench.run(COMMANDS["help"], quick=False) == result


def test_only_a_row_runs_its_command_and_quick_those_that_are_short() -> None:
    assert list(bench.chosen({"intake-pgbench"}, quick=False)) == ["intake-postgres"]
    assert list(bench.chosen({"order-lock"}, quick=True)) == []
    assert list(bench.chosen((), quick=False)) == list(COMMANDS)
    assert {"intake-postgres", "intake-sqlite", "drain-postgres", "drain-sqlite", "relays"} <= set(
        bench.chosen((), quick=True)
    )


def test_nothing_stays_of_a_program_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_INTERRUPTED_SECONDS", 0.1)
    child = tmp_path / "child"
    program = f"trap '' INT; sleep 60 & echo $! > {child}; wait; wait"
    with pytest.raises(subprocess.TimeoutExpired):
        support.run_group(["bash", "-c", program], 2)
    state = ["ps", "-o", "stat=", "-p", child.read_text().strip()]

    def is_gone() -> bool:
        found = subprocess.run(state, check=False, capture_output=True, text=True)
        return found.stdout.strip()[:1] in ("", "Z")

    until(is_gone, "it has ended")


def test_the_documentation_has_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "two-relays": Figure(figure=1.7),
        "fold": Figure(figure=1000.0),
        "drain-bare": Figure(missing="no room"),
    }
    points = [{"at": 1, "rounds": [1200.0, 1000.0, 900.0]}, {"at": 10, "rounds": [9.0]}, {"at": 200, "rounds": [500.0]}]
    printed = {
        "growth-routes": {"title": "Deliveries by routes", "unit": "deliveries/s", "points": points},
        "growth-lanes": "failed with 1: no room",
    }
    results = Results("2026-01-01", {"processors": 2, "python": "3.11.7"}, {}, measured, printed)
    (tmp_path / "latest.json").write_bytes(msgspec.json.encode(results))
    (tmp_path / "drain-postgres.svg").touch()
    monkeypatch.setattr(figures, "_LATEST", tmp_path / "latest.json")
    page = figures.figures()
    assert "| 1.8 | 1.95 | 1.7 (missed) | `benchmarks.relays` |" in page
    assert "| at most 2000 updates | 1000 | 1000 | `benchmarks.backlog fold` |" in page
    assert "| 1 | 1.2 | no room | `benchmarks.drain --database postgres` |" in page
    assert "| not measured | `benchmarks.takeover` |" in page
    assert "\nMeasured on 2026-01-01: 2 processors, Python 3.11.7.\n" in page
    assert "| Deliveries by routes | 1,000 deliveries/s at 1 | 500 deliveries/s at 200 | 0.50 |" in page
    assert page.endswith("\n![drain postgres](../../benchmarks/results/drain-postgres.svg)\n")


def test_only_a_command_without_a_short_run_ends_at_once() -> None:
    with pytest.raises(SystemExit, match="none of them has a short run"):
        bench.main(quick=True, only=["takeover"])
    with pytest.raises(SystemExit, match="no row or command nothing; there are intake-fastapi"):
        bench.main(only=["nothing"])


def test_a_quick_run_without_committed_figures_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", tmp_path / "quick.json")
    monkeypatch.setattr(bench, "run", lambda *_, **__: pytest.fail("minutes are spent"))
    with pytest.raises(SystemExit, match=r"nothing is committed: .* writes quick\.json"):
        bench.main(quick=True)


def test_the_first_run_of_a_checkout_makes_the_folder_of_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICK", tmp_path / "results" / "quick.json")
    monkeypatch.setattr(bench, "run", lambda *_, **__: printed([3.0], [1.0]))
    bench.main(quick=True, keep=True, only=["help"])
    kept = bench.committed_figures()
    assert kept.rows["help"].figure == 3.0
    monkeypatch.setattr(bench, "run", lambda *_, **__: printed([4.1], [1.0]))
    with pytest.raises(SystemExit, match="1"):
        bench.main(quick=True, only=["help"])
