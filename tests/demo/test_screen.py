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
from relay.demo.services import USER, CallMade
from tests.helpers.hostile import HOSTILE, harm_of

ID = "6a5f3e210123456789000042"
CONTACT = {"email": "aino.aalto.1@example.com", "last_name": "Aalto", "phone": "+447700900001"}
ALL_FIELDS = "email=aino.aalto.1@example.com, last_name=Aalto, phone=+447700900001"
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


def call(*made: object) -> Shown:
    return lambda screen: screen.call(CallMade(*made))  # type: ignore[arg-type]


STORY: tuple[Shown, ...] = (
    lambda screen: screen.webhook(WEBHOOK, 200),
    lambda screen: screen.webhook(WEBHOOK, None),
    call("GET", f"/contacts?externalId={ID}", 200),
    call("POST", "/contacts", 503),
    call("POST", "/contacts", 201, ID, CONTACT),
    call("PATCH", "/contacts/contact-1", 200, ID, {"last_name": "Berg", "phone": None}),
    call("PATCH", "/contacts/contact-1", 200, ID),
    call("PATCH", "/contacts/contact-1", 409),
    call("DELETE", "/contacts/contact-1", 204, ID),
    lambda screen: screen.command("sweep", "--source trivore"),
    lambda screen: screen.command("sweep", f"USER {ID}", "an orphan: its entity is gone"),
)


def test_a_story_reads_from_the_change_to_the_call() -> None:
    assert lines(*STORY) == [
        "12:00:00 change  CREATE     Aino Aalto                   email=aino.aalto.1@example.com",
        "12:00:00 webhook CREATE 200 USER …0042                   Aino Aalto",
        "12:00:00 webhook CREATE --- USER …0042                   no answer; it is sent again",
        "12:00:00 call    GET    200 /contacts?externalId=…0042",
        "12:00:00 call    POST   503 /contacts                    on purpose; it is tried again",
        f"12:00:00 call    POST   201 /contacts                    {ALL_FIELDS}",
        "12:00:00 call    PATCH  200 /contacts/contact-1          last_name=Berg, phone=null",
        "12:00:00 call    PATCH  200 /contacts/contact-1          nothing new",
        "12:00:00 call    PATCH  409 /contacts/contact-1          refused",
        "12:00:00 call    DELETE 204 /contacts/contact-1          Aino Aalto",
        "12:00:00 command sweep      --source trivore",
        "12:00:00 command sweep      USER …0042                   an orphan: its entity is gone",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_each_event_has_one(width: int) -> None:
    shown = lines(*STORY, width=width)
    assert len(shown) == len(STORY) + 1
    assert max(map(cell_len, shown)) <= width


@pytest.mark.parametrize("width", [None, 4000], ids=["file", "terminal"])
def test_no_value_of_a_change_a_webhook_or_a_call_moves_a_cursor_hides_or_is_markup(width: int | None) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=width is not None, width=width or 10_000, highlight=False)
    screen = DemoScreen(console, Noon())
    screen.change(ChangeMade("create", USER, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}))
    screen.webhook({"entityType": HOSTILE, "id": HOSTILE, "eventType": HOSTILE}, 200)
    screen.call(CallMade(HOSTILE, HOSTILE, 201, HOSTILE, {HOSTILE: HOSTILE}))
    screen.call(CallMade("DELETE", HOSTILE, 204, HOSTILE))
    screen.command(HOSTILE, HOSTILE, HOSTILE)
    shown = output.getvalue()
    assert harm_of(shown, terminal=width is not None) == []
    assert len(shown.splitlines()) == 5
    assert "[link=https://evil.example]" in shown
