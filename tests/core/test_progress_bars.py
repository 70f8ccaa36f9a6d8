"""A progress bar shows at a terminal alone, and leaves nothing behind."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from relay.cli import output
from relay.cli.output import bar
from tests.helpers.waiting import until


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Collect the output that a terminal was sent."""
    written = io.StringIO()
    made = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(output, "console", lambda **_: made)
    return written


def test_work_has_one_at_a_terminal(shown: io.StringIO) -> None:
    with bar("comparing", 3) as report:
        report()
        until(lambda: "1/3" in shown.getvalue(), "it is shown")


def test_elsewhere_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("comparing", 3) as report:
        report()
    assert capsys.readouterr() == ("", "")
