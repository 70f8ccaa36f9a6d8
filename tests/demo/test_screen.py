"""The demo's log: columns that line up, in the width that there is, and what each call changed."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from relay.demo.run import DemoScreen
from relay.demo.scenario import ChangeMade
from relay.demo.services import USER
from tests.helpers.planted import HOSTILE, harm_of

ID = "6a5f3e210123456789000042"
CREATED = ChangeMade("create", USER, ID, "Aino Aalto", {"email": "aino.aalto.1@example.com"})
WEBHOOK = {"entityType": "USER", "id": ID, "eventType": "CREATE"}

Shown = Callable[[DemoScreen], None]


class Noon:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def lines(*shown: Shown, width: int | None = None) -> list[str]:
    """The output after the contact's user was created: on a terminal of that width, or into a file."""
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=width is not None, color_system=None, width=width or 10_000, highlight=False
    )
    screen = DemoScreen(console, Noon())
    screen.change(CREATED)
    for show in shown:
        show(screen)
    return output.getvalue().splitlines()


STORY: tuple[Shown, ...] = (
    lambda screen: screen.webhook(WEBHOOK, 200),
    lambda screen: screen.webhook(WEBHOOK, None),
    lambda screen: screen.call("GET", f"/contacts?externalId={ID}", 200, {}),
    lambda screen: screen.call("POST", "/contacts", 503, {}),
    lambda screen: screen.call("PATCH", "/contacts/contact-1", 200, {"last_name": "Berg", "phone": None}),
    lambda screen: screen.line("command", "sweep", "--source trivore"),
)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_each_event_has_one(width: int) -> None:
    shown = lines(*STORY, width=width)
    assert len(shown) == len(STORY) + 1
    assert max(map(cell_len, shown[:-1])) <= width
    assert shown[-1].endswith("--source trivore"), "a command is whole, so that it can be copied"


@pytest.mark.parametrize("width", [None, 4000], ids=["file", "terminal"])
def test_no_value_of_a_change_a_webhook_or_a_call_moves_a_cursor_hides_or_is_markup(width: int | None) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=width is not None, width=width or 10_000, highlight=False)
    screen = DemoScreen(console, Noon())
    screen.change(ChangeMade("create", USER, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}))
    screen.webhook({"entityType": HOSTILE, "id": HOSTILE, "eventType": HOSTILE}, 200)
    screen.call(HOSTILE, HOSTILE, 201, {HOSTILE: HOSTILE})
    screen.call("DELETE", HOSTILE, 204, {})
    screen.say(HOSTILE)
    shown = output.getvalue()
    assert harm_of(shown, terminal=width is not None) == []
    assert len(shown.splitlines()) == 5
    assert "[link=https://evil.example]" in shown
