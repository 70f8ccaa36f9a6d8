"""The report of `inbox doctor`: for people, in 80 columns, and nothing of a value reaches the terminal as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from relay.cli.examine import lines_of
from relay.doctor.examinations import EXAMINATIONS
from relay.doctor.run import ExaminationResult
from relay.findings import Finding

HOSTILE = "\x1b]0;owned\x07\n  ! forged: [red] \u202e"
TESTS = Path(__file__).parent


def a_finding(level: str = "warning", sentence: str = "something is wrong", remedy: str = "relay status") -> Finding:
    return Finding("stuck", level, sentence, "route", "it matters " * 20, None, remedy)  # type: ignore[arg-type]


def report(*findings: Finding, needs: Sequence[str | None] = (None,), width: int | None = 80) -> str:
    """The report of an examination for each of `needs`; the last has the findings."""
    made = [ExaminationResult("abc"[number], need, ()) for number, need in enumerate(needs)]
    made[-1] = ExaminationResult(made[-1].name, made[-1].needs, findings)
    return "\n".join(line.plain for line in lines_of(made, width=width))


def test_a_critical_finding_comes_first_and_information_last() -> None:
    shown = report(*(a_finding(severity) for severity in ("information", "warning", "critical")))
    marks = [line[2] for line in shown.splitlines() if line.startswith(("  ! ", "  i "))]
    assert marks == ["!", "!", "i"]
    assert shown.startswith("not well: 2 findings, 1 critical; 1 examination")


def test_what_was_not_examined_is_listed_with_its_needs() -> None:
    shown = report(a_finding(), needs=["needs the database", "needs the database", f"needs {HOSTILE}"])
    assert "\n  - a: needs the database\n  - b: needs the database\n" in shown
    assert "\n  - c (in part): needs \\x1b]0;owned\\x07\\n  ! forged" in shown
    assert "; 0 examinations, 3 not made in full" in shown


@pytest.mark.parametrize("width", [80, None])
def test_no_value_reaches_the_terminal_as_it_is(width: int | None) -> None:
    shown = report(a_finding("warning", HOSTILE, f"relay resume {HOSTILE}"), width=width)
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "\n  ! forged" not in shown
    assert "[red]" in shown


def test_every_kind_of_finding_has_a_scene_in_which_it_is_found() -> None:
    scenes = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py") if path != Path(__file__))
    kinds = [kind.name for each in EXAMINATIONS if each.name != "relay" for kind in each.kinds]
    assert [name for name in kinds if f'"{name}"' not in scenes] == []
