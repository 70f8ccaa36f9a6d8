"""Costs of traces, as `python -m benchmarks.tracing` counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tracing
from tests.helpers.webhooks import config_text

EACH_EXPORT = 3.0
"""Microseconds of one event of a round that is on."""


class CountedSwitch:
    """Exports what the rounds have sampled since the last export."""

    def __init__(self, *_: object) -> None:
        self.is_on, self.sampled = False, 0
        self.open = None

    def turn(self, *, is_on: bool) -> None:
        self.is_on = is_on

    def flush(self) -> float:
        sampled, self.sampled = self.sampled, 0
        return sampled * EACH_EXPORT


@pytest.mark.parametrize("sides", [("on", "off", "again"), ("off", "again", "on")])
async def test_the_export_of_all_measured_rounds_is_counted_and_that_of_no_other(
    sides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CountedSwitch] = []

    def make_switch(*_: object) -> CountedSwitch:
        made.append(CountedSwitch())
        return made[-1]

    class Server:
        def __init__(self, *_: object) -> None: ...

        async def start(self) -> None: ...

        async def stop(self) -> None: ...

        async def answer(self, number: int, _requests: object) -> float:
            made[0].sampled += number if made[0].is_on else 0
            return 100.0

    def in_this_order(*_: object) -> list[str]:
        return list(sides)

    path = tmp_path / "inbox.toml"
    path.write_text(config_text("sqlite:///unused.db"), encoding="utf-8")
    monkeypatch.setenv("INBOX_CONFIG", str(path))
    monkeypatch.setattr(tracing, "Switch", make_switch)
    monkeypatch.setattr(tracing, "Server", Server)
    monkeypatch.setattr("random.sample", in_this_order)
    found = tracing.Found()
    await tracing._intake(tracing.Asked(tracing.Work.INTAKE, rounds=2, number=10, url="", traced={}), found)
    assert found.exported == EACH_EXPORT
    assert found.costs() == pytest.approx(1.03)
