"""`/events/{seq}`: what became of an event, and its payload after a reveal that is recorded."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.accounts import Actor
from relay.delivery.outcome import Call, Failed
from relay.store import gates
from relay.web.reveal import text_of
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, VIEWER, Page
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import a_fact, an_event

HOSTILE = "<script>alert(1)</script>\u202e'\"&"
SECRET = "the-secret-word"


def with_body(number: int, body: bytes, entity: str = "u1", **headers: str) -> Any:  # noqa: ANN401  # an event
    made = an_event(number, entity)
    digest = hashlib.sha256(body).digest()
    return msgspec.structs.replace(made, body=body, body_sha256=digest, headers={**made.headers, **headers})


def route_of(page: Page, seq: int, route: str = "strict", actor: Actor = OPERATOR) -> dict[str, Any]:
    (found,) = [each for each in page.json(f"/events/{seq}.json", actor)["routes"] if each["route"] == route]
    return found  # type: ignore[no-any-return]  # JSON


def reveals(steps: Steps) -> list[tuple[int, str, str]]:
    found = steps.rows("SELECT seq, who, reason FROM payload_reveal ORDER BY id")
    return [(row["seq"], row["who"], row["reason"]) for row in found]


def test_an_event_shows_its_attempts_with_their_calls_and_what_comes_next(page: Page, steps: Steps) -> None:
    call = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, 503, excerpt="out\nof order")
    lost = Call("forward", "POST", "https://audit.example.com/", "not_sent", 2000.0, error="connection refused")
    steps.arrive(an_event(1))
    steps.attempt(Failed((call,), "server_error", "forward answered 503"))
    steps.advance(10)
    steps.attempt(Failed((lost,), "not_sent", "forward: connection refused"))
    found = route_of(page, 1)
    assert (found["state"], found["attempts"], found["acts"]) == ("retrying", 2, ["retry", "cancel"])
    assert found["next"].startswith("attempt 3, due in 30 s")
    assert [(fact["says"], fact["tone"]) for fact in found["facts"]] == [
        ("attempt 1 failed, server_error: forward answered 503", "warn"),
        ("attempt 2 failed, not_sent: forward: connection refused", "warn"),
    ]
    assert [call["outcome"] for fact in found["facts"] for call in fact["calls"]] == ["503", "not_sent"]
    shown = page.get("/events/1").text
    assert "<h1>Event 1</h1>" in shown
    assert "out\nof order</pre>" in shown
    assert 'href="/acts/retry?seq=1&amp;route=strict"' in shown
    assert 'data-copy="inbox show 1"' in shown


@pytest.mark.parametrize(
    "path", ["/events/77", "/events/77.json", "/events/x", "/events/-1", "/events/99999999999999999999"]
)
def test_an_event_that_is_not_there_has_a_page_that_says_so(page: Page, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 404
    assert "There is no such thing" in answer.text


@ON_BOTH
def test_a_delivery_shows_the_head_it_waits_behind_and_its_neighbours(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, "u1", routes=["blocking"]) for n in (1, 2, 3)), an_event(4, "u2", routes=[]))
    steps.attempt(HOPELESS, "blocking")
    middle = page.json("/events/2.json")
    assert (middle["previous_seq"], middle["next_seq"]) == (1, 3)
    found = route_of(page, 2, "blocking")
    assert (found["head_seq"], found["waiting"], found["acts"]) == (1, 2, ["cancel"])
    assert found["next"] == "waits in its lane behind event 1, which is dead and blocks their lane"
    blocked = route_of(page, 1, "blocking")
    assert (blocked["state"], blocked["head_seq"], blocked["acts"]) == (
        "blocked",
        None,
        ["replay", "unblock", "cancel"],
    )
    assert 'href="/events/1">Show event 1</a>' in page.get("/events/2").text
    assert page.json("/events/4.json")["routes"] == []
    assert "No route matched this event" in page.get("/events/4").text


def test_gates_that_hold_a_delivery_back_are_told_with_the_command_that_opens_them(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    with steps.database.write() as transaction:
        gates.pause(transaction, ("route", "strict"), who="ann", why=HOSTILE)
        gates.pause(transaction, ("entity", "trivore|USER|u2"), who="ann", why="of another")
    (hold,) = route_of(page, 1)["holds"]
    assert hold["command"] == "relay resume --route strict"
    shown = page.get("/events/1").text
    assert "route strict was paused now by ann: &lt;script&gt;" in shown
    assert "<script>alert" not in shown


def test_duplicates_are_counted_and_other_bodies_told(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.intake.repeat(an_event(1), with_body(1, b"another"))
    found = page.json("/events/1.json")
    assert found["times"] == 2
    assert (
        sorted(each["is_other"] for each in found["duplicates"]) == [False, True]
        or found["duplicates"][0]["times"] == 2
    )
    assert "2 requests with the same key" in page.get("/events/1").text


def test_a_payload_shows_only_after_a_reveal_which_is_recorded(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, f'{{"word": "{SECRET}", "n": 1.10}}'.encode(), **{"x-token": "t-4711"}))
    assert SECRET not in page.get("/events/1").text + page.get("/events/1.json").text
    refused = page.post("/events/1/reveal", {"reason": " "})
    assert (refused.status_code, reveals(steps)) == (400, [])
    assert SECRET not in refused.text
    assert "say why, in letters or digits" in refused.text

    shown = page.post("/events/1/reveal", {"reason": f"ticket 12 {HOSTILE}"}, actor=VIEWER)
    assert shown.status_code == 200
    assert f"  &#34;word&#34;: &#34;{SECRET}&#34;,\n  &#34;n&#34;: 1.10\n" in shown.text
    assert "t-4711" in shown.text
    assert "<script>alert" not in shown.text
    assert reveals(steps) == [(1, "veikko", f"ticket 12 {HOSTILE}")]
    assert "to veikko: ticket 12 &lt;script&gt;" in page.get("/events/1").text
    assert SECRET not in page.get("/events/1").text


def test_the_api_reveals_to_programs_as_well(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, b"\xff\x00"), with_body(2, b"text"))
    answer = page.post("/api/v1/events/1/reveal", json={"reason": "a test"})
    assert answer.json() == {"headers": {"content-type": "application/json"}, "body": None, "body_base64": "/wA="}
    assert page.post("/api/v1/events/2/reveal", json={"reason": "a test"}).json()["body"] == "text"
    assert reveals(steps) == [(1, "olga", "a test"), (2, "olga", "a test")]
    for wrong in (
        {},
        {"reason": ""},
        {"reason": "x" * 2001},
        {"reasn": "x"},
        {"reason": "a\x00"},
        {"reason": "x", "view": "y"},
    ):
        assert page.post("/api/v1/events/1/reveal", json=wrong).status_code == 400, wrong
    for raw in (b"[1]", b"{", b"[" * 60_000, b""):
        assert page.post("/api/v1/events/1/reveal", data=raw).status_code == 400, raw
    assert len(reveals(steps)) == 2


def test_a_body_is_downloaded_as_a_file_that_no_browser_renders(page: Page, steps: Steps) -> None:
    body = b"<script>alert(1)</script>\x00"
    steps.arrive(with_body(1, body))
    answer = page.post("/events/1/reveal", {"reason": "a copy", "download": "true"})
    assert answer.content == body
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="event-1.bin"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert reveals(steps) == [(1, "olga", "a copy")]


def test_a_large_body_is_shown_up_to_256_kib(page: Page, steps: Steps) -> None:
    steps.arrive(with_body(1, b"<b>&\x1b" * 4_000_000))
    shown = page.post("/events/1/reveal", {"reason": "large"})
    assert "The first 262.1 kB of 20.0 MB are shown." in shown.text
    assert len(shown.text) < 4_000_000
    assert "\x1b" not in shown.text


@ON_BOTH
@pytest.mark.parametrize(
    ("how", "says"), [("pruned", "Retention has deleted them"), ("erased", "Erasure has deleted them")]
)
def test_a_payload_that_is_gone_says_so(page: Page, steps: Steps, how: str, says: str) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    erase = ["UPDATE inbox SET erased_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 1"] if how == "erased" else []
    _without_triggers(steps, *erase, "DELETE FROM inbox_payload WHERE seq = 1")
    assert says in page.get("/events/1").text
    assert page.json("/events/1.json")["payload"] == how
    assert page.post("/events/1/reveal", {"reason": "a test"}).status_code == 404
    assert reveals(steps) == []
    assert route_of(page, 1)["acts"] == ["cancel"]


def _without_triggers(steps: Steps, *statements: str) -> None:
    if steps.database.sql.is_postgres:
        steps.do("SET LOCAL session_replication_role = replica", *statements)
    else:
        names = [row["name"] for row in steps.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        steps.do(*(f"DROP TRIGGER {name}" for name in names), *statements)


@ON_BOTH
def test_facts_of_other_forms_and_very_many_of_them_break_nothing(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(DONE)
    in_sql = HOSTILE.replace("'", "")
    odd = [
        a_fact("skipped", calls="none", why=in_sql),
        a_fact("replayed", calls=[1, {"milliseconds": "long", "url": in_sql, "status": [1]}], who="x" * 10_000),
    ]
    steps.do(*odd, *(a_fact("replayed", who="ann", why="again") for _ in range(450)))
    shown = page.get("/events/1").text
    assert "<script>alert" not in shown
    assert "Earlier facts are not shown here" in shown
    found = page.json("/events/1.json")
    assert found["has_earlier_facts"]
    assert len(found["routes"][0]["facts"]) == 40


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_body_can_be_shown(body: bytes) -> None:
    assert text_of(body)[1] == len(body)
