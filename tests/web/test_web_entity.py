"""`/entity`: any id, its lanes and events, and the difference of both sides of a sync route."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.db import reads
from relay.web.screens import event as event_screen
from tests.destinations.calling import FETCHED, FOUND, World
from tests.helpers import scripted
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import VIEWER, Page, on_database, serving
from tests.helpers.relaying import DONE, HOPELESS, FakeClock, Steps
from tests.helpers.scripted import ScriptedServer, answer
from tests.helpers.storing import Intake, an_event
from tests.helpers.tables import rows
from tests.helpers.worlds import HOSTILE

U1 = "source=trivore&type=USER&id=u1"
ODD_IDS = (
    ".", "..", "a.json", ".json", "a/b", "//", "/", "a/", "%2F", "~2F", "~", "a%", "?x=1", "#x", " a ", "a\\b", "x\n",
    "\u202e\u2066", "a+b&c=d;e", "x" * 10_000, HOSTILE, "difference", "é😀",
)  # fmt: skip


def test_odd_ids_are_linked_found_and_shown_harmless(page: Page, steps: Steps) -> None:
    for number, entity_id in enumerate(ODD_IDS, start=1):
        event = an_event(number, entity_id, routes=[])
        steps.arrive(msgspec.structs.replace(event, entity_type=f"T {entity_id[:50]}"))
        (row,) = page.json("/deliveries.json?limit=1")["rows"]
        asked = urlencode({"source": "trivore", "type": row["entity_type"], "id": row["entity_id"]})
        links = re.findall(r'href="/entity\?([^"]*)"', page.get("/deliveries?limit=1").text)
        assert parse_qs(unescape(links[0])) == parse_qs(asked)
        shown = page.get(f"/entity?{asked}")
        assert (shown.status_code, "<script>alert" in shown.text) == (200, False), entity_id
        for path in ("/entity.json", "/api/v1/entity"):
            assert [event["seq"] for event in page.json(f"{path}?{asked}")["events"]] == [number], entity_id


@pytest.mark.parametrize(
    ("entity_id", "may_copy"), [("u1", True), ("u\x1b[201~\r\\! id\r", False), ("u\u202e1", False)]
)
def test_a_copied_text_holds_no_key_that_a_terminal_would_press(
    page: Page, steps: Steps, entity_id: str, may_copy: bool
) -> None:
    steps.arrive(an_event(1, entity_id))
    shown = page.get(f"/entity?source=trivore&type=USER&id={quote(entity_id)}").text
    assert ('data-copy="inbox list' in shown, "inbox list" in shown) == (may_copy, True)
    assert not set(shown) & {"\x1b", "\r", "\u202e"}


@ON_BOTH
def test_an_entity_shows_its_events_with_all_that_happened_and_its_lanes(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, "u1", routes=["blocking", "strict"]) for n in (1, 2)), an_event(3, "u2"))
    steps.attempt(HOPELESS, "blocking")
    steps.attempt(DONE)
    found = page.json(f"/entity.json?{U1}")
    assert [event["seq"] for event in found["events"]] == [2, 1]
    assert [(line["what"], line["route"]) for line in found["events"][1]["timeline"]] == [
        ("arrived", None), ("dead", "blocking"), ("delivered", "strict"),
    ]  # fmt: skip
    names = ("head_seq", "head_state", "waiting", "delivered_seq")
    assert {lane["route"]: [lane[name] for name in names] for lane in found["lanes"]} == {
        "blocking": [1, "blocked", 1, None],
        "strict": [2, "ready", 0, 1],
        "latest": [None, None, 0, None],
    }
    assert "/acts/replay?source=trivore&amp;entity_type=USER&amp;entity_id=u1" in page.get(f"/entity?{U1}").text
    assert "/acts/" not in page.get(f"/entity?{U1}", actor=VIEWER).text
    for unknown in ("source=trivore&type=USER&id=nobody", "source=nobody&type=USER&id=u1"):
        assert [page.get(f"/entity{kind}?{unknown}").status_code for kind in ("", ".json")] == [404, 404]


def test_pages_of_an_entity_hold_each_event_once(page: Page, steps: Steps) -> None:
    steps.receive(*(an_event(n, "u1" if n % 2 else "u2") for n in range(1, 12)))
    seen, path = [], f"/entity?{U1}&limit=2"
    while path:
        seen += [event["seq"] for event in page.json(f"/api/v1{path}")["events"]]
        following = re.findall(r'rel="next" href="([^"]*)"', page.get(path).text)
        path = unescape(following[0]) if following else ""
    assert seen == [11, 9, 7, 5, 3, 1]


def test_an_event_of_thousands_of_facts_does_not_fill_the_page(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MOST_LINES", 5)
    steps.receive(*(an_event(n, "u1") for n in range(1, 9)))
    found = page.json(f"/entity.json?{U1}")
    assert found["is_cut"]
    assert [len(event["timeline"]) for event in found["events"]] == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted.serving() as made:
        yield made


@pytest.fixture
def compared(server: ScriptedServer, database_url: str, clock: FakeClock) -> Iterator[Page]:
    """The page of a sync route `user-to-crm`, with one event of USER/u1."""
    config = on_database(World(server).config(_SYNC), database_url)
    Intake(database_url).append(an_event(1, "u1", routes=["user-to-crm"]))
    with serving(config, clock) as page:
        yield page


_SYNC = """
    fetch = { api = "identity", path = "/user/{event.entity_id}" }
    find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }
    create = { path = "/contacts" }
    update = { path = "/contacts/{target.id}" }
    gone = "skip"
    map = { name = "entity.name", external_id = "event.entity_id" }
"""
DIFFERENCE = f"/entity/difference?{U1}&route=user-to-crm"
FETCH, FIND = "GET /api/user/u1", "GET /contacts?externalId=u1"


def test_both_sides_are_compared_field_by_field_and_nothing_is_written(
    compared: Page, server: ScriptedServer, engine: Engine
) -> None:
    other, same = (
        answer(200, {"items": [{"id": "c1", "external_id": "u1", "name": name}]}) for name in (HOSTILE, "Ada")
    )
    server.routes[FETCH] = [FETCHED, FETCHED, FETCHED, answer(500)]
    server.routes[FIND] = [other, other, same, FOUND]
    found = compared.json(f"/api/v1{DIFFERENCE}")
    assert (found["change"], found["fields"]) == ("update", [{"field": "name", "before": HOSTILE, "after": "Ada"}])
    shown, agreed, failed = (compared.get(DIFFERENCE).text for _ in range(3))
    assert ("<strong>update</strong>" in shown, "<script>alert" in shown, "Ada" in shown) == (True, False, True)
    assert "Both sides of route user-to-crm agree" in agreed
    assert "They could not be compared: " in failed
    assert {request.method for request in server.seen} == {"GET"}
    for table in ("delivery_log", "relay_command"):
        assert rows(engine, f"SELECT * FROM {table}") == []


def test_only_operators_compare_and_only_what_can_be(compared: Page, page: Page) -> None:
    assert compared.get(DIFFERENCE, actor=VIEWER).status_code == 403
    assert "Compare both sides" in compared.get(f"/entity?{U1}").text
    assert "Compare both sides" not in compared.get(f"/entity?{U1}", actor=VIEWER).text
    assert compared.get(DIFFERENCE.replace("u1", "nobody")).status_code == 404
    for wrong in ("user-to-cmr", "", "x&id=u2", "x&rout=y"):
        assert compared.get(f"/entity/difference?{U1}&route={wrong}").status_code == 400, wrong
    assert page.get(f"/entity/difference?{U1}&route=strict").status_code == 400


def test_systems_that_hang_block_no_other_page_and_no_third_comparison(
    compared: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, begun = threading.Event(), threading.Semaphore(0)

    def hang(*_: Any) -> Any:  # noqa: ANN401  # as the function that it stands for
        begun.release()
        assert hangs.wait(60)
        raise AssertionError

    monkeypatch.setattr(event_screen, "preview", hang)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(Page(compared.url).get, DIFFERENCE) for _ in range(2)]
        for _ in running:
            assert begun.acquire(timeout=60)
        refused = compared.get(DIFFERENCE)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "10")
        for _ in range(8):
            assert compared.get(f"/entity?{U1}").status_code == 200
        hangs.set()
        assert [each.result().status_code for each in running] == [500, 500]
    assert compared.get(DIFFERENCE).status_code == 500, "there is room again"
