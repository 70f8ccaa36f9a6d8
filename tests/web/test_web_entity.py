"""`/entity` and `/events/{seq}`: lanes, events, the difference of both sides, deliveries, and reveals of payloads."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from inbox.db import reads
from relay.delivery.outcome import Call, Failed
from relay.store import gates
from relay.web.reveal import decode_text
from relay.web.screens import event as event_screen
from tests.destinations.calling import FETCHED, FOUND, World
from tests.helpers import scripted
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import VIEWER, Page, on_database, serving
from tests.helpers.relaying import DONE, HOPELESS, FakeClock, Steps
from tests.helpers.scripted import ScriptedServer, answer
from tests.helpers.storing import Intake, a_fact, an_event
from tests.helpers.tables import rows
from tests.helpers.worlds import HOSTILE
from tests.web.acting import execute, form_of

U1 = "source=trivore&type=USER&id=u1"
ODD_IDS = (
    ".", "..", "a.json", ".json", "a/b", "//", "/", "a/", "%2F", "~2F", "~", "a%", "?x=1", "#x", " a ", "a\\b", "x\n",
    "\u202e\u2066", "a+b&c=d;e", "x" * 10_000, HOSTILE, "difference", "é😀",
)  # fmt: skip


def test_odd_ids_are_linked_found_and_escaped(page: Page, steps: Steps) -> None:
    for number, entity_id in enumerate(ODD_IDS, start=1):
        event = an_event(number, entity_id, routes=[])
        steps.arrive(msgspec.structs.replace(event, entity_type=f"T {entity_id[:50]}"))
        (row,) = page.json("/deliveries.json?limit=1")["rows"]
        query = urlencode({"source": "trivore", "type": row["entity_type"], "id": row["entity_id"]})
        links = re.findall(r'href="/entity\?([^"]*)"', page.get("/deliveries?limit=1").text)
        assert parse_qs(unescape(links[0])) == parse_qs(query)
        shown = page.get(f"/entity?{query}")
        assert (shown.status_code, "<script>alert" in shown.text) == (200, False), entity_id
        for path in ("/entity.json", "/api/v1/entity"):
            assert [event["seq"] for event in page.json(f"{path}?{query}")["events"]] == [number], entity_id


@pytest.mark.parametrize(
    ("entity_id", "may_copy"), [("u1", True), ("u\x1b[201~\r\\! id\r", False), ("u\u202e1", False)]
)
def test_a_command_with_control_characters_cannot_be_copied(
    page: Page, steps: Steps, entity_id: str, may_copy: bool
) -> None:
    steps.arrive(an_event(1, entity_id))
    shown = page.get(f"/entity?source=trivore&type=USER&id={quote(entity_id)}").text
    assert ('data-copy="inbox list' in shown, "inbox list" in shown) == (may_copy, True)
    assert not set(shown) & {"\x1b", "\r", "\u202e"}


@ON_BOTH
def test_an_entity_shows_its_events_with_their_timelines_and_its_lanes(page: Page, steps: Steps) -> None:
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
    for unknown in ("source=trivore&type=USER&id=unknown", "source=unknown&type=USER&id=u1"):
        assert [page.get(f"/entity{kind}?{unknown}").status_code for kind in ("", ".json")] == [404, 404]


def test_pages_of_an_entity_have_each_event_once(page: Page, steps: Steps) -> None:
    steps.receive(*(an_event(n, "u1" if n % 2 else "u2") for n in range(1, 12)))
    seen, path = [], f"/entity?{U1}&limit=2"
    while path:
        seen += [event["seq"] for event in page.json(f"/api/v1{path}")["events"]]
        following = re.findall(r'rel="next" href="([^"]*)"', page.get(path).text)
        path = unescape(following[0]) if following else ""
    assert seen == [11, 9, 7, 5, 3, 1]


def test_the_timelines_of_an_entity_are_bounded(page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_both_sides_are_compared_field_by_field_without_a_write(
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


def test_only_operators_compare_and_only_known_entities_of_sync_routes(compared: Page, page: Page) -> None:
    assert compared.get(DIFFERENCE, actor=VIEWER).status_code == 403
    assert "Compare both sides" in compared.get(f"/entity?{U1}").text
    assert "Compare both sides" not in compared.get(f"/entity?{U1}", actor=VIEWER).text
    assert compared.get(DIFFERENCE.replace("u1", "unknown")).status_code == 404
    for wrong in ("user-to-cmr", "", "x&id=u2", "x&rout=y"):
        assert compared.get(f"/entity/difference?{U1}&route={wrong}").status_code == 400, wrong
    assert page.get(f"/entity/difference?{U1}&route=strict").status_code == 400


def test_hanging_comparisons_block_no_other_page_and_a_third_gets_503(
    compared: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, begun = threading.Event(), threading.Semaphore(0)

    def hang(*_: Any) -> Any:  # noqa: ANN401  # replaces `make_preview`
        begun.release()
        assert hangs.wait(60)
        raise AssertionError

    monkeypatch.setattr(event_screen, "make_preview", hang)
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


# --- `/events/{seq}`: the deliveries of an event, and reveals of its payload


SECRET = "the-secret-word"


def with_body(number: int, body: bytes, **headers: str) -> Any:  # noqa: ANN401  # an event
    made = an_event(number)
    digest = hashlib.sha256(body).digest()
    return msgspec.structs.replace(made, body=body, body_sha256=digest, headers={**made.headers, **headers})


def route_of(page: Page, seq: int, route: str = "strict") -> dict[str, Any]:
    (found,) = [each for each in page.json(f"/events/{seq}.json")["routes"] if each["route"] == route]
    return found  # type: ignore[no-any-return]  # JSON


def reveals(steps: Steps) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in steps.rows("SELECT seq, who, reason FROM payload_reveal ORDER BY id")]


def test_an_event_shows_its_attempts_with_their_calls_and_the_next_one(page: Page, steps: Steps) -> None:
    call = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, 503, excerpt="out\nof order")
    lost = Call("forward", "POST", "https://audit.example.com/", "not_sent", 2000.0, error="connection refused")
    steps.arrive(an_event(1))
    steps.attempt(Failed((call,), "server_error", "forward answered 503"))
    steps.advance(10)
    steps.attempt(Failed((lost,), "not_sent", "forward: connection refused"))
    found = route_of(page, 1)
    assert (found["state"], found["attempts"], found["acts"]) == ("retrying", 2, ["retry", "cancel"])
    assert found["next"].startswith("attempt 3, due in 30 s")
    assert [fact["tone"] for fact in found["facts"]] == ["warn", "warn"]
    assert [call["outcome"] for fact in found["facts"] for call in fact["calls"]] == ["503", "not_sent"]
    shown = page.get("/events/1").text
    for part in ("out\nof order</pre>", 'href="/acts/retry?seq=1&amp;route=strict"', 'data-copy="inbox show 1"'):
        assert part in shown


@pytest.mark.parametrize("path", ["77", "77.json", "x", "-1", "99999999999999999999"])
def test_an_unknown_event_is_not_found(page: Page, path: str) -> None:
    assert page.get(f"/events/{path}").status_code == 404


@ON_BOTH
def test_a_delivery_shows_the_head_it_waits_behind_and_its_neighbours(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, "u1", routes=["blocking"]) for n in (1, 2, 3)), an_event(4, "u2", routes=[]))
    steps.attempt(HOPELESS, "blocking")
    middle = page.json("/events/2.json")
    assert (middle["previous_seq"], middle["next_seq"]) == (1, 3)
    found = {seq: route_of(page, seq, "blocking") for seq in (1, 2)}
    assert {seq: (each["state"], each["head_seq"], each["acts"]) for seq, each in found.items()} == {
        1: ("blocked", None, ["replay", "unblock", "cancel"]),
        2: ("waiting", 1, ["cancel"]),
    }
    assert (found[2]["waiting"], "event 1, which is dead" in found[2]["next"]) == (2, True)
    assert 'href="/events/1">Show event 1</a>' in page.get("/events/2").text
    assert page.json("/events/4.json")["routes"] == []


def test_a_held_delivery_shows_its_gates_and_the_commands_that_open_them(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    with steps.database.write() as transaction:
        gates.pause(transaction, ("route", "strict"), who="ann", why=HOSTILE)
        gates.pause(transaction, ("entity", "trivore|USER|u2"), who="ann", why="of another")
    (hold,) = route_of(page, 1)["holds"]
    assert hold["command"] == "relay resume --route strict"
    shown = page.get("/events/1").text
    assert ("by ann: &lt;script&gt;" in shown, "<script>alert" in shown) == (True, False)


def test_duplicates_are_counted_and_different_bodies_marked(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.intake.repeat(an_event(1), with_body(1, b"another"))
    found = page.json("/events/1.json")
    assert (found["times"], sum(each["times"] for each in found["duplicates"])) == (2, 2)
    assert any(each["is_other"] for each in found["duplicates"])


def test_a_payload_is_shown_only_after_a_recorded_reveal(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, f'{{"word": "{SECRET}", "n": 1.10}}'.encode(), **{"x-token": "t-4711"}))
    refused = page.post("/events/1/reveal", {"reason": " "})
    assert (refused.status_code, reveals(steps)) == (400, [])
    for text in (refused.text, page.get("/events/1").text, page.get("/events/1.json").text):
        assert SECRET not in text

    shown = page.post("/events/1/reveal", {"reason": f"ticket 12 {HOSTILE}"}, actor=VIEWER)
    assert f"  &#34;word&#34;: &#34;{SECRET}&#34;,\n  &#34;n&#34;: 1.10\n" in shown.text
    assert ("t-4711" in shown.text, "<script>alert" in shown.text) == (True, False)
    assert reveals(steps) == [(1, "veikko", f"ticket 12 {HOSTILE}")]
    again = page.get("/events/1").text
    assert ("to veikko: ticket 12 &lt;script&gt;" in again, SECRET in again) == (True, False)


def test_the_api_reveals_to_programs_as_well(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, b"\xff\x00"), with_body(2, b"text"))
    answer = page.post("/api/v1/events/1/reveal", json={"reason": "a test"})
    assert answer.json() == {"headers": {"content-type": "application/json"}, "body": None, "body_base64": "/wA="}
    assert page.post("/api/v1/events/2/reveal", json={"reason": "a test"}).json()["body"] == "text"
    wrong = (b"{}", b'{"reasn": "x"}', b'{"reason": "a\\u0000"}', b'{"reason": "x", "view": "y"}', b"[1]", b"{", b"")
    for raw in (*wrong, b"[" * 60_000):
        assert page.post("/api/v1/events/1/reveal", data=raw).status_code == 400, raw[:40]
    assert reveals(steps) == [(1, "olga", "a test"), (2, "olga", "a test")]


def test_a_downloaded_body_is_never_rendered_by_a_browser(page: Page, steps: Steps) -> None:
    body = b"<script>alert(1)</script>\x00"
    steps.arrive(with_body(1, body))
    answer = page.post("/events/1/reveal", {"reason": "a copy", "download": "true"})
    assert answer.content == body
    given = [answer.headers[name] for name in ("Content-Type", "Content-Disposition", "X-Content-Type-Options")]
    assert given == ["application/octet-stream", 'attachment; filename="event-1.bin"', "nosniff"]
    assert reveals(steps) == [(1, "olga", "a copy")]


def test_a_large_body_is_shown_up_to_256_kib(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, b"<b>&\x1b" * 4_000_000))
    shown = page.post("/events/1/reveal", {"reason": "large"}).text
    assert "The first 262.1 kB of 20.0 MB are shown." in shown
    assert (len(shown) < 4_000_000, "\x1b" in shown) == (True, False)


@ON_BOTH
@pytest.mark.parametrize("how", ["pruned", "erased"])
def test_a_deleted_payload_cannot_be_revealed(page: Page, steps: Steps, how: str) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    erase = ["UPDATE inbox SET erased_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 1"] if how == "erased" else []
    _run_without_triggers(steps, *erase, "DELETE FROM inbox_payload WHERE seq = 1")
    assert page.get("/events/1").status_code == 200
    assert page.json("/events/1.json")["payload"] == how
    assert page.post("/events/1/reveal", {"reason": "a test"}).status_code == 404
    assert (reveals(steps), route_of(page, 1)["acts"]) == ([], ["cancel"])


def _run_without_triggers(steps: Steps, *statements: str) -> None:
    if steps.database.sql.is_postgres:
        steps.do("SET LOCAL session_replication_role = replica", *statements)
    else:
        names = [row["name"] for row in steps.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        steps.do(*(f"DROP TRIGGER {name}" for name in names), *statements)


@ON_BOTH
def test_malformed_facts_and_very_many_of_them_break_nothing(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(DONE)
    in_sql = HOSTILE.replace("'", "")
    odd = [
        a_fact("skipped", calls="none", why=in_sql),
        a_fact("replayed", calls=[1, {"milliseconds": "long", "url": in_sql, "status": [1]}], who="x" * 10_000),
    ]
    steps.do(*odd, *(a_fact("replayed", who="ann", why="again") for _ in range(450)))
    assert "<script>alert" not in page.get("/events/1").text
    found = page.json("/events/1.json")
    assert (found["has_earlier_facts"], len(found["routes"][0]["facts"])) == (True, 40)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_body_can_be_shown(body: bytes) -> None:
    assert decode_text(body)[1] == len(body)


def test_an_edited_body_is_compared_planned_and_delivered(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, b'{"n": 1, "word": "<b>"}'))
    steps.attempt(HOPELESS)
    shown = page.post("/events/1/reveal", {"reason": "wrong unit"})
    assert 'action="/events/1/edit' in shown.text
    assert 'action="/events/1/edit' not in page.post("/events/1/reveal", {"reason": "x1"}, actor=VIEWER).text
    order = {"reason": "wrong unit", "route": "strict", "body": '{\r\n"n": 2, "word": "<b>"}'}
    assert page.post("/events/1/edit", order, VIEWER).status_code == 403
    assert page.post("/api/v1/events/1/edit", actor=VIEWER, json=order).status_code == 403
    wrong = page.post("/events/1/edit", {**order, "body": '{"n": 2,}'})
    assert (wrong.status_code, "line 1" in wrong.text, "{&#34;n&#34;: 2,}" in wrong.text) == (400, True, True)
    sent = page.post("/events/1/edit", order)
    assert (sent.status_code, reveals(steps)[-1]) == (303, (1, "olga", "wrong unit"))
    planned = page.get(sent.headers["location"]).text
    assert ("/n</th>" in planned, '<ins class="mono">2</ins>' in planned) == (True, True)
    done = execute(steps, page.post("/acts/replay", form_of(planned)))
    assert (done.affected, steps.attempt(DONE).body) == (1, b'{\n"n": 2, "word": "<b>"}')
    assert "replayed with an edited body (/n) by olga" in page.get("/events/1").text

    large = {**order, "body": '{"n": "' + "x" * 100_000 + '"}'}
    answer = page.post("/api/v1/events/1/edit", json=large).json()
    assert page.json(answer["href"])["differences"][0]["field"] == "/n"
