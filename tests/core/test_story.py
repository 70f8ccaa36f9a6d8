"""The story of an event: what `inbox show` tells of it, and the commands that it offers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from inbox.loader.load import parse_config
from inbox.observe.visible import visible_line
from relay.cli.examine import story
from relay.cli.output import wrapped

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
CONFIG = parse_config("""
[sources.shop]
preset = "trivore"
auth = { kind = "none" }
[destinations.crm]
kind = "forward"
url = "https://crm.example.com/hooks"
[routes.to-crm]
source = "shop"
destination = "crm"
""")
CALL = {
    "step": "forward", "method": "POST", "url": "https://crm.example.com/hooks", "sent": "answered",
    "milliseconds": 123.4, "status": 503, "excerpt": "out\nof order",
}  # fmt: skip
NOT_SENT = {
    "step": "forward", "method": "POST", "url": "https://crm.example.com/hooks", "sent": "not_sent",
    "milliseconds": 2000.0, "error": "connection refused",
}  # fmt: skip


def a_fact(kind: str, attempt: int = 1, *, minutes_ago: float = 1, **detail: object) -> dict[str, Any]:
    at = NOW - timedelta(minutes=minutes_ago)
    return {
        "id": 1,
        "at": at,
        "route": "to-crm",
        "kind": kind,
        "attempt": attempt,
        "relay_node": "r1",
        "detail": detail,
    }


def a_gate(kind: str, name: str, **closed: object) -> dict[str, Any]:
    names = (
        "paused_at",
        "paused_by",
        "pause_reason",
        "breaker_until",
        "breaker_cause",
        "rate_used_until",
        "held_until",
        "hold_reason",
    )
    return {"kind": kind, "name": name, **dict.fromkeys(names), "breaker": "closed", **closed}


def an_event(state: str = "ready", attempts: int = 0, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # parts of the row
    due_at = NOW + timedelta(hours=2) if state == "ready" else None
    delivery = {"route": "to-crm", "state": state, "attempts": attempts, "due_at": due_at, "relay_node": "r1",
                "lane": "ORDER|o1", "superseded_by": 9,
                "last_error": None, "last_status": None}  # fmt: skip
    return {
        "seq": 7, "source": "shop", "entity_type": "ORDER", "entity_id": "o1", "event_type": "order.paid",
        "event_id": None, "received_at": NOW - timedelta(minutes=3), "occurred_at": NOW - timedelta(minutes=4),
        "content_type": "application/json", "body": b"x" * 1234, "body_bytes": 1234,
        "erased_at": None, "is_pruned": False, "deliveries": [delivery], "facts": [], "duplicates": [],
        "lanes": [], "gates": [], "relays": [], **more,
    }  # fmt: skip


def told(event: dict[str, Any], width: int | None = None) -> list[str]:
    return [line.plain.rstrip() for line in story(event, CONFIG, NOW, width)]


def commands(event: dict[str, Any]) -> list[str]:
    lines = told(event)
    first = next((number for number, line in enumerate(lines) if line.lstrip().startswith("commands")), len(lines))
    return [line.replace("commands", "").strip() for line in lines[first:]]


def test_a_retry_of_a_person_names_its_time_like_the_other_times() -> None:
    fact = a_fact("rescheduled", who="kim", why="back", due_at="2026-11-26 11:58:30.646461Z")
    assert "  2026-11-26T11:59:00Z  rescheduled by kim: back: due 2026-11-26T11:58:30Z" in told(an_event(facts=[fact]))


def test_a_failed_delivery_is_told_from_its_arrival_to_its_next_attempt() -> None:
    facts = [
        a_fact("attempt_failed", 1, error_class="server_error", error="forward answered 503", calls=[CALL]),
        a_fact("attempt_failed", 2, error_class="not_sent", error="forward: connection refused", calls=[NOT_SENT]),
    ]
    assert told(an_event(attempts=2, facts=facts)) == [
        "event 7: ORDER/o1 order.paid from shop",
        "  arrived               3 min ago (2026-11-26T11:57:00Z)",
        "  happened              4 min ago (2026-11-26T11:56:00Z)",
        "  body                  1.2 kB, application/json",
        "",
        "route to-crm: retrying",
        "  2026-11-26T11:59:00Z  attempt 1 failed, server_error: forward answered 503",
        "                        503  123 ms  POST https://crm.example.com/hooks",
        "                            out of order",
        "  2026-11-26T11:59:00Z  attempt 2 failed, not_sent: forward: connection refused",
        "                        not_sent   2.0 s  POST https://crm.example.com/hooks",
        "  next                  attempt 3, due in 2 h (2026-11-26T14:00:00Z)",
        "  commands              relay retry --seq 7 --route to-crm --reason '…'",
        "                        relay cancel --seq 7 --route to-crm --reason '…'",
    ]


@pytest.mark.parametrize(
    ("gate", "why", "command"),
    [
        (
            a_gate("destination", "crm", paused_at=NOW - timedelta(minutes=5), paused_by="ann", pause_reason="a release"),
            "destination crm was paused 5 min ago by ann: a release",
            "relay resume --destination crm",
        ),
        (
            a_gate("destination", "crm", breaker="open", breaker_until=NOW + timedelta(minutes=9), breaker_cause="6 of 6 failed"),
            "destination crm has its circuit breaker open, the next probe in 9 min: 6 of 6 failed",
            "relay resume --destination crm",
        ),
        (
            a_gate("destination", "crm", breaker="retired", breaker_cause="answered 410"),
            "destination crm is retired: answered 410",
            "relay resume --destination crm",
        ),
        (
            a_gate("entity", "shop|ORDER|o1", paused_at=NOW, paused_by="ann", pause_reason="fraud?"),
            "entity ORDER/o1 was paused now by ann: fraud?",
            "relay resume --source shop --entity ORDER/o1",
        ),
        (
            a_gate("destination", "crm", held_until=NOW + timedelta(minutes=9), hold_reason="update answered 429: Retry-After"),
            "destination crm asked for no call until its limit ends in 9 min: update answered 429: Retry-After",
            "relay resume --destination crm",
        ),
        (
            a_gate("destination", "crm", rate_used_until=NOW + timedelta(seconds=5)),
            "destination crm: its rate limit is used up, more calls follow in 5 s",
            None,
        ),
    ],
)  # fmt: skip
def test_the_gate_that_holds_a_delivery_is_told_with_the_command_that_opens_it(
    gate: dict[str, Any], why: str, command: str | None
) -> None:
    held = an_event(attempts=1, gates=[gate])
    assert f"  held back             {why}" in told(held)
    assert commands(held)[0] == (command or "relay retry --seq 7 --route to-crm --reason '…'")
    for state in ("delivered", "dead", "waiting"):
        assert why not in "\n".join(told(an_event(state, gates=[gate])))


def test_gates_of_other_routes_and_open_gates_are_not_told() -> None:
    paused = {"paused_at": NOW, "paused_by": "ann", "pause_reason": "no"}
    gates = [a_gate("destination", "other", **paused), a_gate("route", "crm", **paused), a_gate("route", "to-crm")]
    assert "held back" not in "\n".join(told(an_event(gates=gates)))


@pytest.mark.parametrize(
    ("event", "following", "offered"),
    [
        (an_event("received"), "a relay orders it in its lane", ["relay status"]),
        (
            an_event("waiting", lanes=[{"route": "to-crm", "head_seq": 5, "head_state": "blocked", "waiting": 1}]),
            "waits in its lane behind event 5, which is dead and blocks their lane",
            ["inbox show 5"],
        ),
        (
            an_event("in_flight", 2, relays=[{"id": "r1", "host": "h", "pid": 3}]),
            "attempt 2 runs now, by the relay on h with pid 3",
            [],
        ),
        (an_event("dead", 9), "nothing, until somebody replays it", ["replay", "cancel"]),
        (
            an_event("blocked", 9),
            "nothing: it is dead, and its lane waits until somebody decides",
            ["replay", "unblock", "cancel"],
        ),
        (an_event("delivered", 1), "nothing: it has ended", ["replay"]),
        (an_event("superseded", 1), "nothing: it has ended", ["inbox show 9"]),
    ],
)
def test_each_state_says_what_comes_next_and_offers_its_commands(
    event: dict[str, Any], following: str, offered: list[str]
) -> None:
    whole = [each if " " in each else f"relay {each} --seq 7 --route to-crm --reason '…'" for each in offered]
    assert f"  next                  {following}" in told(event)
    assert commands(event) == whole


def test_a_due_delivery_that_nobody_claims_points_at_the_relays() -> None:
    event = an_event()
    event["deliveries"][0]["due_at"] = NOW - timedelta(minutes=2)
    assert "; no relay has claimed it yet" in "\n".join(told(event))
    assert commands(event) == ["relay status"]


def test_every_kind_of_fact_has_a_sentence_with_its_person_and_reason() -> None:
    said = told(
        an_event(
            "dead",
            facts=[
                a_fact("dead", 5, cause="exhausted", error="it answered 503", blocks_lane=True),
                a_fact("replayed", 5, who="ann", why="the CRM is back"),
                a_fact("attempt_failed", 0, error_class="throttled", error="429", counted=False),
                a_fact("skipped", 1, why="deletions are left alone"),
                a_fact("delivered", 1, did="nothing_to_delete"),
                a_fact("of_a_newer_version", 1, who="{ann}", why="{x}"),
            ],
        )
    )
    assert [line.split("Z  ", 1)[1] for line in said if line.startswith("  2026")] == [
        "given up after attempt 5, and blocks its lane, exhausted: it answered 503",
        "replayed by ann: the CRM is back",
        "attempt 0 failed (not counted), throttled: 429",
        "skipped: deletions are left alone",
        "attempt 1: nothing to delete",
        "of a newer version by {ann}: {x}",
    ]


def test_of_a_thousand_facts_the_newest_are_told() -> None:
    said = told(an_event(facts=[a_fact("abandoned", number) for number in range(1, 1001)]))
    assert "960 earlier facts: --json" in "\n".join(said)
    assert sum("was cut off" in line for line in said) == 40


def test_an_event_without_a_route_and_without_its_payload_says_so() -> None:
    duplicate = {"times": 3, "received_at": NOW, "last_received_at": None, "is_other": True}
    said = told(an_event(deliveries=[], is_pruned=True, duplicates=[duplicate]))
    assert said[3:] == [
        "  body                  1.2 kB, application/json; payload pruned",
        "  duplicates            3 requests with the same key, the last now; 1 of them with another body",
        "",
        "no route matched it when it arrived: it is stored, and delivered nowhere",
    ]


def test_an_erased_event_says_when_by_whom_and_why_and_offers_no_replay() -> None:
    erased = an_event(
        "delivered", is_pruned=True, erased_at=NOW, facts=[a_fact("erased", who="kim", why="request 2026-17")]
    )
    said = told(erased)
    assert said[3:5] == [
        "  entity erased         now (2026-11-26T12:00:00Z)",
        "  body                  1.2 kB, application/json; payload erased",
    ]
    assert any(line.endswith("the entity was erased by kim: request 2026-17") for line in said)
    assert commands(erased) == []


@given(st.text(min_size=1), st.text(), st.integers(40, 200))
def test_no_text_from_outside_breaks_a_line_or_exceeds_the_terminal(name: str, error: str, width: int) -> None:
    event = an_event("dead", facts=[a_fact("dead", cause=name, error=error, calls=[{**CALL, "url": name}])])
    event["deliveries"][0]["route"] = event["facts"][0]["route"] = name
    event |= {"entity_id": name, "event_type": error}
    for line in told(event, width):
        assert line.isprintable()
        assert cell_len(line) <= max(width, 60) or "relay " in line, "only a command stays whole"


@given(st.text(), st.integers(2, 60))
def test_wrapping_loses_no_character(text: str, room: int) -> None:
    harmless = visible_line(text)
    lines = wrapped(harmless, room)
    assert "".join(lines).replace(" ", "") == harmless.replace(" ", "")
    assert all(cell_len(line) <= room for line in lines)
