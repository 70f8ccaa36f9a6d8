"""The demo's log: columns that line up, in the width that there is, and what each call changed."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from relay.demo.commercial import CallMade
from relay.demo.compare import Mismatch
from relay.demo.events import CommandRun, DemoEvent, NoCallNeeded
from relay.demo.identity import USER
from relay.demo.scenario import ChangeMade
from relay.demo.screen import Bars, DemoScreen, show_summary, summary_of
from relay.demo.webhooks import WebhookSent
from tests.helpers.hostile import HOSTILE, harm_of

ID = "6a5f3e210123456789000042"
CONTACT = {"email": "aino.aalto.1@example.com", "last_name": "Aalto", "phone": "+447700900001"}
ALL_FIELDS = "email=aino.aalto.1@example.com, last_name=Aalto, phone=+447700900001"
CREATED = ChangeMade("create", USER, ID, "Aino Aalto", {"email": "aino.aalto.1@example.com"})


class Noon:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def lines(*events: DemoEvent, width: int | None = None) -> list[str]:
    """The output after the contact's user was created: on a terminal of that width, or into a file."""
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=width is not None, color_system=None, width=width or 10_000, highlight=False
    )
    screen = DemoScreen(console, Noon())
    screen.show_change(CREATED)
    for event in events:
        screen.show(event)
    return output.getvalue().splitlines()


STORY: tuple[DemoEvent, ...] = (
    WebhookSent("USER", ID, "CREATE", 200),
    WebhookSent("USER", ID, "CREATE", None),
    CallMade("GET", f"/contacts?externalId={ID}", 200),
    CallMade("POST", "/contacts", 503),
    CallMade("POST", "/contacts", 201, ID, CONTACT),
    CallMade("PATCH", "/contacts/contact-1", 200, ID, {"last_name": "Berg", "phone": None}),
    CallMade("PATCH", "/contacts/contact-1", 200, ID),
    CallMade("PATCH", "/contacts/contact-1", 409),
    CallMade("DELETE", "/contacts/contact-1", 204, ID),
    NoCallNeeded("USER", ID, "stale"),
    NoCallNeeded("USER", ID, "same"),
    CommandRun("sweep", "--source trivore"),
    CommandRun("sweep", f"USER {ID}", "an orphan: its entity is gone"),
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
        "12:00:00 relay   stale      USER …0042                   too old: it is read again",
        "12:00:00 relay   same       USER …0042                   nothing new: nothing is sent",
        "12:00:00 command sweep      --source trivore",
        "12:00:00 command sweep      USER …0042                   an orphan: its entity is gone",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_each_event_has_one(width: int) -> None:
    shown = lines(*STORY, width=width)
    assert len(shown) == len(STORY) + 1
    assert max(map(cell_len, shown)) <= width


@pytest.mark.parametrize("width", [80, 120, None])
def test_statuses_and_details_stand_in_columns(width: int | None) -> None:
    shown = lines(*STORY, width=width)
    statuses = {line[24:27] for line in shown}
    assert statuses == {"   ", "200", "---", "503", "201", "409", "204"}
    words = ("email=", "last_name=Berg", "on purpose", "too old", "nothing new", "an orphan")
    details = {line.index(word) for line in shown for word in words if word in line}
    assert len(details) == 1


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (replace(CREATED, is_reported=False), "no webhook: email=aino.aalto.1@example.com"),
        (ChangeMade("delete", USER, ID, "Aino Aalto", {}, is_reported=False), "no webhook"),
        (ChangeMade("update", USER, ID, "Aino Aalto", {}), "nothing the other side has"),
    ],
)
def test_a_change_that_no_webhook_reports_or_that_changes_nothing_there_says_so(
    change: ChangeMade, detail: str
) -> None:
    output = io.StringIO()
    DemoScreen(Console(file=output, color_system=None, width=200, highlight=False), Noon()).show_change(change)
    assert output.getvalue().rstrip().endswith(f"Aino Aalto                   {detail}")


@pytest.mark.parametrize("width", [None, 4000], ids=["file", "terminal"])
def test_no_value_of_a_change_a_webhook_or_a_call_moves_a_cursor_hides_or_is_markup(width: int | None) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=width is not None, width=width or 10_000, highlight=False)
    screen = DemoScreen(console, Noon())
    screen.show_change(ChangeMade("create", USER, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}))
    for event in (
        WebhookSent(HOSTILE, HOSTILE, HOSTILE, 200),
        CallMade(HOSTILE, HOSTILE, 201, HOSTILE, {HOSTILE: HOSTILE}),
        CallMade("DELETE", HOSTILE, 204, HOSTILE),
        NoCallNeeded(HOSTILE, HOSTILE, "stale"),
        CommandRun(HOSTILE, HOSTILE, HOSTILE),
    ):
        screen.show(event)
    shown = output.getvalue()
    assert harm_of(shown, terminal=width is not None) == []
    assert len(shown.splitlines()) == 6
    assert "[link=https://evil.example]" in shown


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
def test_nor_does_one_in_the_summary_or_above_the_bars(terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=10_000, highlight=False)
    numbers = Counter(still_open=1)
    found = Mismatch("contact", HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    show_summary(console, Counter(summary_of([found], numbers, seed=1, seconds=1.0, folder=HOSTILE)))
    bars = Bars(console, 1)
    with bars.progress:
        bars.say(HOSTILE)
        bars.show(CommandRun(HOSTILE, HOSTILE, HOSTILE))
    shown = output.getvalue()
    assert harm_of(shown, terminal=terminal) == []
    assert shown.count("[link=https://evil.example]") == 2 * 9
