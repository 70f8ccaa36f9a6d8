"""The outage that a person makes in a running demo: a signal stops the commercial service, and another starts it."""

from __future__ import annotations

import io
import os
import signal
from typing import cast

from rich.console import Console

from relay.demo.events import OUTAGE_SIGNAL, DemoEvents
from relay.demo.run import DemoRun
from relay.demo.screen import DemoScreen
from relay.demo.stack import Stack


class TwoStates:
    """A stack whose commercial service is up or not."""

    is_commercial_up = True

    def stop_commercial(self) -> None:
        self.is_commercial_up = False

    def start_commercial(self) -> None:
        self.is_commercial_up = True


def test_each_signal_asks_once_and_the_signal_has_its_old_meaning_afterwards() -> None:
    asked: list[None] = []
    before = signal.getsignal(OUTAGE_SIGNAL)
    with DemoEvents(lambda _: None).on_outage_signal(lambda: asked.append(None)):
        os.kill(os.getpid(), OUTAGE_SIGNAL)
        os.kill(os.getpid(), OUTAGE_SIGNAL)
    assert asked
    assert signal.getsignal(OUTAGE_SIGNAL) == before


def test_the_service_is_stopped_and_started_as_was_asked_and_the_person_is_told() -> None:
    written = io.StringIO()
    run = DemoRun(DemoScreen(Console(file=written, width=200)), seed=1)
    run.stack = cast("Stack", TwoStates())
    run.switch_commercial()
    assert run.stack.is_commercial_up
    for is_up, said in ((False, "stopped the commercial service"), (True, "started the commercial service again")):
        run.ask_outage()
        run.switch_commercial()
        run.switch_commercial()
        assert run.stack.is_commercial_up is is_up
        assert written.getvalue().count(said) == 1
