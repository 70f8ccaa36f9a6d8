"""The report of `inbox doctor`: for people, in 80 columns, and nothing of a value reaches the terminal as it is."""

from __future__ import annotations

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


def report(*results: ExaminationResult, width: int | None = 80) -> str:
    return "\n".join(line.plain for line in lines_of(results, width=width))


def an_examination(*findings: Finding, name: str = "deliveries", needs: str | None = None) -> ExaminationResult:
    return ExaminationResult(name, needs, findings)


def test_a_critical_finding_comes_first_and_information_last() -> None:
    found = [a_finding(severity) for severity in ("information", "warning", "critical")]
    shown = report(an_examination(*found))
    marks = [line[2] for line in shown.splitlines() if line.startswith(("  ! ", "  i "))]
    assert marks == ["!", "!", "i"]
    assert shown.startswith("not well: 2 findings, 1 critical; 1 examination")


def test_what_was_not_examined_is_listed_with_its_needs() -> None:
    shown = report(
        an_examination(name="a", needs="needs the database"),
        an_examination(name="b", needs="needs the database"),
        an_examination(a_finding(), name="c", needs=f"needs {HOSTILE}"),
    )
    assert "\n  - a: needs the database\n  - b: needs the database\n" in shown
    assert "\n  - c (in part): needs \\x1b]0;owned\\x07\\n  ! forged" in shown
    assert "; 0 examinations, 3 not made in full" in shown


@pytest.mark.parametrize("width", [80, None])
def test_no_value_reaches_the_terminal_as_it_is(width: int | None) -> None:
    shown = report(an_examination(a_finding("warning", HOSTILE, f"relay resume {HOSTILE}")), width=width)
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "\n  ! forged" not in shown
    assert "[red]" in shown


def test_every_kind_of_finding_has_a_scene_in_which_it_is_found() -> None:
    scenes = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py") if path != Path(__file__))
    kinds = [kind.name for each in EXAMINATIONS if each.name != "relay" for kind in each.kinds]
    assert [name for name in kinds if f'"{name}"' not in scenes] == []
