"""A progress bar shows only for work that takes long, at a terminal, and leaves nothing behind."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn

from relay.cli import terminal
from relay.cli.terminal import Doing, bar
from tests.helpers.waiting import until


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Collect the output that a terminal was sent."""
    output = io.StringIO()
    made = Console(file=output, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "console", lambda **_: made)
    return output


def test_work_that_is_done_at_once_has_none(shown: io.StringIO) -> None:
    with bar(Doing(), MofNCompleteColumn()) as progress:
        progress.advance(progress.add_task("comparing", total=3))
    assert "comparing" not in shown.getvalue()


def test_work_that_takes_long_has_one(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "BAR_AFTER_SECONDS", 0.01)
    with bar(Doing(), MofNCompleteColumn()) as progress:
        progress.advance(progress.add_task("comparing", total=3))
        until(lambda: "1/3" in shown.getvalue(), "it is shown")
    assert "comparing" in shown.getvalue()


def test_elsewhere_there_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "BAR_AFTER_SECONDS", 0.0)
    with bar(Doing()) as progress:
        progress.add_task("comparing", total=3)
        assert progress.disable
    assert capsys.readouterr() == ("", "")
