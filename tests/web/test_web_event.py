"""`/events/{seq}`: what became of an event, and its payload after a reveal that is recorded."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.outcome import Call, Failed
from relay.store import gates
from relay.web.reveal import text_of
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import a_fact, an_event
from tests.helpers.worlds import HOSTILE

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
    assert [fact["tone"] for fact in found["facts"]] == ["warn", "warn"]
    assert [call["outcome"] for fact in found["facts"] for call in fact["calls"]] == ["503", "not_sent"]
    shown = page.get("/events/1").text
    for part in ("out\nof order</pre>", 'href="/acts/retry?seq=1&amp;route=strict"', 'data-copy="inbox show 1"'):
        assert part in shown


@pytest.mark.parametrize("path", ["77", "77.json", "x", "-1", "99999999999999999999"])
def test_an_event_that_is_not_there_is_not_found(page: Page, path: str) -> None:
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


def test_gates_that_hold_a_delivery_back_are_told_with_the_command_that_opens_them(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    with steps.database.write() as transaction:
        gates.pause(transaction, ("route", "strict"), who="ann", why=HOSTILE)
        gates.pause(transaction, ("entity", "trivore|USER|u2"), who="ann", why="of another")
    (hold,) = route_of(page, 1)["holds"]
    assert hold["command"] == "relay resume --route strict"
    shown = page.get("/events/1").text
    assert ("by ann: &lt;script&gt;" in shown, "<script>alert" in shown) == (True, False)


def test_duplicates_are_counted_and_other_bodies_told(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.intake.repeat(an_event(1), with_body(1, b"another"))
    found = page.json("/events/1.json")
    assert (found["times"], sum(each["times"] for each in found["duplicates"])) == (2, 2)
    assert any(each["is_other"] for each in found["duplicates"])


def test_a_payload_shows_only_after_a_reveal_which_is_recorded(page: Page, steps: Steps) -> None:
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


def test_a_body_is_downloaded_as_a_file_that_no_browser_renders(page: Page, steps: Steps) -> None:
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
def test_a_payload_that_is_gone_is_not_revealed(page: Page, steps: Steps, how: str) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    erase = ["UPDATE inbox SET erased_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 1"] if how == "erased" else []
    _without_triggers(steps, *erase, "DELETE FROM inbox_payload WHERE seq = 1")
    assert page.get("/events/1").status_code == 200
    assert page.json("/events/1.json")["payload"] == how
    assert page.post("/events/1/reveal", {"reason": "a test"}).status_code == 404
    assert (reveals(steps), route_of(page, 1)["acts"]) == ([], ["cancel"])


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
    assert "<script>alert" not in page.get("/events/1").text
    found = page.json("/events/1.json")
    assert (found["has_earlier_facts"], len(found["routes"][0]["facts"])) == (True, 40)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_body_can_be_shown(body: bytes) -> None:
    assert text_of(body)[1] == len(body)
