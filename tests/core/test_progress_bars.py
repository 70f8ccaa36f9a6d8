"""A progress bar shows only for work that takes long, at a terminal, and leaves nothing behind."""

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


def test_work_that_is_done_at_once_has_none(shown: io.StringIO) -> None:
    with bar("comparing", 3) as report:
        report()
    assert "comparing" not in shown.getvalue()


def test_work_that_takes_long_has_one(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BAR_AFTER_SECONDS", 0.01)
    with bar("comparing", 3) as report:
        report()
        until(lambda: "1/3" in shown.getvalue(), "it is shown")
    assert "comparing" in shown.getvalue()


def test_elsewhere_there_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "BAR_AFTER_SECONDS", 0.0)
    with bar("comparing", 3) as report:
        report()
    assert capsys.readouterr() == ("", "")
