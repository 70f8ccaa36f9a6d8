"""Lists of the page: filters, pages, counts, and acts on a row, a group, and all that match."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from inbox.db import listing
from inbox.db.intake import Rejected
from relay.delivery.alerts import Alert
from relay.delivery.outcome import Call, Failed
from relay.operations.asks import Selection
from relay.store import reads
from relay.store.alerts import store_alerts
from relay.store.operator import commands, execution
from relay.web.screens import lists
from relay.web.screens.lists import COLUMNS
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import START, an_event
from tests.helpers.webhooks import body
from tests.web.acting import confirm, execute, fill_with_dead

ALL = [4, 3, 2, 1]
FILTERS = {
    "": ALL,
    "state=dead": [2],
    "state=retrying": [3],
    "state=ready": [3],
    "status=503": [3],
    "state=unrouted": [4],
    "entity=GROUP": [4],
    "event_type=MADE": [4],
    "entity=USER/u1": [3, 1],
    "entity=USER/u1&state=delivered": [1],
    "route=strict": [3, 2, 1],
    "destination=audit": [3, 2, 1],
    "error=EMAIL": [2],
    "source=trivore&before=3": [2, 1],
    "before=0": [],
    "seq=3": [3],
    "sender_id=GUID-2": [2],
    "sender_id=GUID-2&state=ready": [],
    "body=hunter2": [4],
    "since=2026-01-01T00:00:01Z": [],
    "until=2026-01-01T00:00:01Z&since=2026-01-01": ALL,
    "since=0001-01-01": ALL,
    "until=9999-12-31T23:59:59.999999Z": ALL,
    "until=0001-01-01": [],
    "since=9999-12-31": [],
}


def seqs(page: Page, path: str) -> list[int]:
    return [row["seq"] for row in page.json(path)["rows"]]


@pytest.fixture
def some(steps: Steps) -> Steps:
    """Events of u1, delivered (1) and waiting for a retry (3), of u2, dead (2), and one without a route (4)."""
    unavailable = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, 503)
    steps.arrive(an_event(1, "u1"), msgspec.structs.replace(an_event(2, "u2"), event_id="GUID-2"))
    steps.attempt(DONE)
    steps.attempt(HOPELESS)
    steps.arrive(an_event(3, "u1"))
    steps.attempt(Failed((unavailable,), "server_error", "forward answered 503"))
    unrouted = an_event(4, "g1", routes=[], body=b'{"password": "hunter2"}')
    steps.receive(msgspec.structs.replace(unrouted, entity_type="GROUP", event_type="MADE"))
    return steps


@ON_BOTH
@pytest.mark.usefixtures("some")
def test_every_filter_narrows_the_list(page: Page) -> None:
    assert {query: seqs(page, f"/deliveries.json?{query}") for query in FILTERS} == FILTERS


def test_only_operators_search_in_payloads_and_an_unknown_id_of_a_sender_gets_a_hint(page: Page, some: Steps) -> None:
    for path in ("/deliveries", "/deliveries.json", "/api/v1/deliveries"):
        assert page.get(f"{path}?body=hunter2", actor=VIEWER).status_code == 403
    some.do("DELETE FROM inbox_payload WHERE seq = 4")
    assert "deleted 1 of the payloads" in page.get("/deliveries?body=hunter2").text
    assert "GUID-2" in page.json("/deliveries.json?sender_id=guid")["hint"]
    assert page.json("/deliveries.json?sender_id=GUID-2&state=ready")["hint"] is None


@pytest.mark.parametrize(
    "query",
    [
        "state=daed", "route=srict", "destination=nowhere", "source=trivor", "entity=/u1", "status=42", "since=tomorrow",
        "limit=0", "limit=1&limit=2", "rout=strict",
    ],
)  # fmt: skip
def test_an_invalid_filter_is_named_and_the_form_keeps_the_others(page: Page, query: str) -> None:
    answer = page.get(f"/deliveries.json?{query}")
    assert (answer.status_code, answer.json()["field"]) == (400, query.partition("=")[0])
    shown = page.get(f"/deliveries?{query}&error=kept")
    assert shown.status_code == 400
    assert all(part in shown.text for part in ('name="state"', 'value="kept"', 'role="alert"'))
    field, _, value = query.partition("&")[0].partition("=")
    if f'name="{field}"' in shown.text:
        wrong = re.findall(r'name="(\w+)"[^>]*aria-invalid="true"', shown.text)
        assert (wrong, f">{value}<" in shown.text or f'value="{value}"' in shown.text) == ([field], True)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("42", "/deliveries?seq=42"), (" USER/u1 ", "/deliveries?entity=USER%2Fu1"), ("72d3-cc", "/deliveries?sender_id=72d3-cc"),
        ("//evil.example", "/deliveries?entity=%2F%2Fevil.example"), ("", "/deliveries"),
    ],
)  # fmt: skip
def test_the_search_box_leads_to_the_list(page: Page, given: str, path: str) -> None:
    answer = page.get(f"/find?{urlencode({'q': given})}", VIEWER)
    assert (answer.status_code, answer.headers["location"]) == (303, path)


@pytest.mark.usefixtures("some")
def test_pages_follow_each_other_and_only_the_first_has_a_count(page: Page) -> None:
    found = [page.json(f"/deliveries.json?limit=2{before}") for before in ("", "&before=3")]
    assert [([row["seq"] for row in each["rows"]], each["before"], each["matching"]) for each in found] == [
        ([4, 3], 3, 4),
        ([2, 1], None, None),
    ]
    assert 'rel="next" href="/deliveries?limit=2&amp;before=3"' in page.get("/deliveries?limit=2").text


def test_a_count_ends_at_500(page: Page, steps: Steps) -> None:
    steps.receive(*(an_event(n) for n in range(1, 503)))
    assert "500+ deliveries match." in page.get("/deliveries").text
    assert page.json("/deliveries.json?state=received")["matching"] == 501


def test_a_search_that_runs_out_of_time_reports_its_progress_and_can_be_continued(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_WINDOW", 2)
    monkeypatch.setattr(lists, "LONGEST_SECONDS", -1.0)
    steps.arrive(an_event(1, "u1"))
    steps.attempt(DONE)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(2, 6)))
    found = page.json("/deliveries.json?state=delivered")
    assert (found["rows"], found["is_complete"], found["looked_through"], found["before"]) == ([], False, 2, 4)
    assert 'href="/deliveries?state=delivered&amp;before=4">Go on' in page.get("/deliveries?state=delivered").text
    found = page.json("/deliveries.json?state=delivered&before=2")
    assert [row["seq"] for row in found["rows"]] == [1]
    assert found["before"] is None or page.json("/deliveries.json?state=delivered&before=1")["before"] is None


@pytest.mark.usefixtures("some")
def test_acts_are_offered_on_all_matches_and_on_each_row(page: Page) -> None:
    shown = page.get("/deliveries?state=dead&route=strict&error=email").text
    for act in ("replay", "cancel"):
        assert f'href="/acts/{act}?route=strict&amp;error=email&amp;state=dead"' in shown
        assert f'href="/acts/{act}?seq=2&amp;route=strict"' in shown
    retrying = page.get("/deliveries?state=retrying&entity=USER/u1").text
    assert 'href="/acts/retry?entity_type=USER&amp;entity_id=u1"' in retrying


@ON_BOTH
def test_a_replay_is_offered_only_while_the_payload_is_stored(page: Page, some: Steps) -> None:
    offered = {row["seq"]: row["acts"] for row in page.json("/deliveries.json")["rows"]}
    assert offered == {1: ["replay"], 2: ["replay", "cancel"], 3: ["retry", "cancel"], 4: []}
    some.do("DELETE FROM inbox_payload WHERE seq = 1")
    assert page.json("/deliveries.json?seq=1")["rows"][0]["acts"] == []
    assert [row["acts"] for row in page.json("/deliveries.json", VIEWER)["rows"]] == [[], [], [], []]


@ON_BOTH
@pytest.mark.usefixtures("some")
@pytest.mark.parametrize(
    ("query", "acts"),
    [
        ("state=dead", {"replay": [2], "cancel": [2]}),
        ("state=ready", {"cancel": [3]}),
        ("state=delivered&entity=USER/u1", {"replay": []}),  # a newer event of u1 is being retried
        ("state=delivered&entity=USER/u1&since=2026-01-01", {"replay": []}),
        ("state=delivered&seq=1", {"replay": []}),
        ("state=dead&sender_id=GUID-2", {}),
        ("state=dead&body=n", {}),
        ("route=strict", {}),
        ("state=in_flight", {}),
        ("state=unrouted", {}),
        ("state=superseded", {}),
        ("state=delivered", {}),
        ("state=delivered&entity=USER/u1&status=200", {}),
        ("state=ready&error=x", {}),
        ("state=dead&since=2d", {}),
    ],
)
def test_an_act_on_all_matches_selects_exactly_those_or_is_not_offered_with_a_reason(
    page: Page, query: str, acts: dict[str, list[int]]
) -> None:
    found = page.json(f"/deliveries.json?{query}")
    assert (found["why_none"] is None) == bool(acts)
    planned = {
        offer["kind"]: page.json(f"/api/v1/acts/{offer['kind']}?{urlencode(offer['selection'])}")["deliveries"]
        for offer in found["offers"]
    }
    assert {act: [row["seq"] for row in rows] for act, rows in planned.items()} == acts


@pytest.mark.usefixtures("some")
def test_chosen_rows_of_several_routes_have_one_plan(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(4, "u4", routes=["strict", "blocking"]), an_event(5, "u5", routes=["strict", "blocking"]))
    assert page.get("/deliveries").text.count('type="checkbox" name="deliveries"') == 7
    assert "checkbox" not in page.get("/deliveries", actor=VIEWER).text
    chosen = "&".join(f"deliveries={each}" for each in ("none", "6/strict", "5/blocking", "2/strict"))
    assert execute(steps, confirm(page, f"cancel?{chosen}")).affected == 3
    cancelled = steps.rows("SELECT seq, route FROM delivery_log WHERE kind = 'cancelled' ORDER BY seq")
    assert [tuple(row.values()) for row in cancelled] == [(2, "strict"), (5, "blocking"), (6, "strict")]
    too_many = "&".join(f"deliveries={n}/strict" for n in range(201))
    for wrong in ("deliveries=none", "deliveries=none&deliveries=x/strict", too_many):
        assert page.get(f"/acts/replay?{wrong}").status_code == 400, wrong


ERRORS = (
    "email: no value",
    "Email: No Value",
    "email: no value ",
    "email: no",
    "email_ no value",
    "100% of 'quotes' and \\ backslashes",
    "100% of 'quotes' and \\ backslashes!",
    "ä" * 10_000,
    "ä" * 9_999 + "o",
    "<b>\u202e</b>",
    "",
)
"""Errors that contain another one, equal it in another case, or match it as a pattern."""


def die(steps: Steps, errors: tuple[str, ...], route: str = "strict", first: int = 1) -> None:
    steps.arrive(*(an_event(first + n, f"u{first + n}", routes=[route]) for n in range(len(errors))))
    for error in errors:
        steps.attempt(Failed((), "mapping", error), route)


def links(html: str, kind: str) -> list[str]:
    """Return the acts on groups, as paths below `/acts/`."""
    return [unescape(found) for found in re.findall(rf'href="/acts/({kind}\?[^"]*error_sha256=[^"]*)"', html)]


@ON_BOTH
def test_dead_letters_are_grouped_with_first_last_count_and_sample(page: Page, steps: Steps) -> None:
    die(steps, ("a", "a", "b"))
    steps.advance(60)
    die(steps, ("a",), first=4)
    die(steps, ("a",), "blocking", first=5)
    groups = page.json("/dead.json")["groups"]
    assert [[each[name] for name in ("route", "error", "count", "blocked", "sample_seq")] for each in groups] == [
        ["strict", "a", 3, 0, 4],
        ["blocking", "a", 1, 1, 5],
        ["strict", "b", 1, 0, 3],
    ]
    assert groups[0]["first_died_at"] < groups[0]["last_died_at"]
    for query, counts in {"route=blocking": [1], "cause=exhausted": [], "since=2026-01-01T00:00:30Z": [1, 1]}.items():
        assert [each["count"] for each in page.json(f"/dead.json?{query}")["groups"]] == counts


@ON_BOTH
def test_an_act_on_a_group_affects_no_other_group(page: Page, steps: Steps) -> None:
    die(steps, ERRORS)
    die(steps, ERRORS, "latest", first=100)
    replays = links(page.get("/dead?route=strict").text, "replay")
    assert len(replays) == len(ERRORS)
    for number, path in enumerate(replays, start=1):
        assert execute(steps, confirm(page, path)).affected == 1
        dead = [(seq, route) for seq, route, state in steps.states() if state == "dead"]
        assert len(dead) == 2 * len(ERRORS) - number
    assert {route for _, route in dead} == {"latest"}


def test_the_page_says_that_only_the_newest_dead_letters_are_grouped(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MOST_GROUPED", 3)
    die(steps, ("a", "b", "c", "d & e"))
    found = page.json("/dead.json")
    assert ([each["error"] for each in found["groups"]], found["is_whole"]) == (["d & e", "c", "b"], False)
    shown = page.get("/dead").text
    assert "newest dead letters are grouped here" in shown
    assert 'href="/deliveries?state=dead&amp;route=strict&amp;error=d+%26+e"' in shown


@ON_BOTH
def test_one_unreadable_fact_does_not_hide_the_others(page: Page, steps: Steps) -> None:
    die(steps, ("a", "b"))
    steps.do(
        "INSERT INTO open_delivery (seq, route, lane, occurred_at, state)"
        " VALUES (77, 'strict', 'x', '2026-01-01 00:00:00.000000Z', 'dead')"
    )
    groups = page.json("/dead.json")["groups"]
    assert sorted((each["error"] or "", each["count"]) for each in groups) == [("", 1), ("a", 1), ("b", 1)]
    assert len(links(page.get("/dead").text, "replay")) == 2


def test_cancelling_a_group_takes_only_deliveries_that_died_since_the_filtered_time(page: Page, steps: Steps) -> None:
    """Both events arrived before that time."""
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.attempt(Failed((), "mapping", "a"))
    steps.advance(60)
    steps.attempt(Failed((), "mapping", "a"))
    (path,) = links(page.get("/dead?since=2026-01-01T00:00:30Z").text, "cancel")
    assert execute(steps, confirm(page, path)).affected == 1
    assert [(seq, state) for seq, _, state in steps.states() if state == "dead"] == [(1, "dead")]


def make_rejected(content: bytes, source: str = "trivore", reason: str = "no version") -> Rejected:
    headers = {"content-type": "application/json", "x-request-id": "hunter2"}
    return Rejected(START, source, 422, "invalid_event", reason, "version", "192.0.2.1", b"\0" * 32, headers, content)


def test_a_now_readable_request_is_readmitted_and_delivered(page: Page, steps: Steps) -> None:
    steps.intake.reject(
        make_rejected(body()), make_rejected(b"{}"), make_rejected(body(), source="gone"), make_rejected(body())
    )
    progress = execute(steps, confirm(page, "readmit?source=trivore"))
    assert (progress.state, progress.affected) == ("done", 2)
    rows = page.json("/rejected.json")["rows"]
    by = [(row["readmitted_seq"], row["readmitted_by"]) for row in rows]
    assert by == [(1, "olga"), (None, None), (None, None), (1, "olga")]
    assert all(set(row) == {*COLUMNS, "is_kept"} and "hunter2" not in str(row) for row in rows)
    steps.until_nothing_is_due()
    assert steps.states() == []


def test_a_filter_by_error_is_not_a_pattern(page: Page, steps: Steps) -> None:
    steps.intake.reject(make_rejected(body(), reason="100% wrong"), make_rejected(body(), reason="100 wrong"))
    assert 'href="/acts/readmit?error=100%25%20wrong"' in page.get("/rejected?error=100%25+wrong").text
    assert page.json("/api/v1/acts/readmit?error=100%25+wrong")["count"] == 1
    assert 'name="everything"' in page.get("/acts/readmit").text


def ask(steps: Steps) -> int:
    return commands.ask(steps.database, "replay", Selection(route="strict"), who="kim", why="a reason", planned=250)


def test_a_command_shows_its_progress(page: Page, steps: Steps) -> None:
    fill_with_dead(steps, 250)
    number = ask(steps)
    execution.work_on(steps.work, number)
    assert '<progress class="" aria-label="progress" max="250" value="200">' in page.get(f"/commands/{number}").text


def test_a_command_is_stopped_and_continued_with_actor_and_reason(page: Page, steps: Steps) -> None:
    number = ask(steps)
    why: dict[str, Any] = {"command": number, "reason": " the wrong route "}
    for act, state, other in (("stop", "cancelled", "continue"), ("continue", "running", "stop")):
        assert f'action="/acts/{act}"' in page.get(f"/commands/{number}").text
        answer = page.post(f"/acts/{act}", why)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/commands/{number}")
        assert page.json(f"/api/v1/commands/{number}")["command"]["state"] == state
        assert f'action="/acts/{other}"' in page.get(f"/commands/{number}").text
    again = page.post("/acts/continue", why)
    assert (again.status_code, 'name="reason"' in again.text) == (409, False), (
        "an act that can't be done is not offered"
    )
    rows = page.json("/commands.json")["rows"]
    assert [(row["kind"], row["asked_by"], row["reason"]) for row in rows[:2]] == [
        (act, "olga", "the wrong route") for act in ("continue", "stop")
    ]


def test_the_api_stops_only_an_open_command(page: Page, steps: Steps) -> None:
    number = ask(steps)
    order: dict[str, Any] = {"command": number, "reason": "the wrong route"}
    for act in ("stop", "continue"):
        answer = page.post(f"/api/v1/acts/{act}", json=order)
        assert (answer.status_code, answer.headers["location"]) == (202, f"/api/v1/commands/{number}")
    execution.work_on(steps.work, number)
    assert page.post("/api/v1/acts/stop", json=order).status_code == 409, "it has ended"
    assert page.post("/acts/stop", {**order, "command": 99}).status_code == 404
    assert page.post("/api/v1/acts/stop", json={**order, "command": 99}).status_code == 404
    for path in ("/commands/7", "/commands/x", "/commands/99999999999999999999"):
        assert page.get(path).status_code == 404, path


@pytest.fixture
def alerted(steps: Steps) -> Steps:
    """Six changes of alerts: `crm` was behind twice and recovered, two sources are silent."""
    changes = [("backlog_old", "crm", True), ("backlog_old", "crm", False)] * 2
    for kind, subject, firing in (*changes, ("source_silent", "one", True), ("source_silent", "two", True)):
        with steps.database.write() as transaction:
            detail = {"seq": 7, "age_seconds": 900, "silent_seconds": 60}
            alert = Alert(kind, subject, firing=firing, detail=detail)  # type: ignore[arg-type]  # one of its kinds
            store_alerts(transaction, [alert], transaction.take_order_lock())
        steps.clock.advance(60)
    return steps


@pytest.mark.usefixtures("alerted")
@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("", ["two", "one", *["crm"] * 4]),
        ("?kind=backlog_old", ["crm"] * 4),
        ("?subject=one", ["one"]),
        ("?since=2026-01-01T00:04:00Z", ["two", "one"]),
        ("?until=2026-01-01T00:01:00Z", ["crm"]),
    ],
)
def test_a_filter_narrows_the_history_and_hides_no_firing_alert(page: Page, query: str, rows: list[str]) -> None:
    found = page.json(f"/alerts.json{query}")
    assert [row["subject"] for row in found["rows"]] == rows
    assert [alert["subject"] for alert in found["firing"]] == ["one", "two"]
    assert all(row["text"] for row in found["rows"])


def test_an_alert_of_another_version_is_shown_too(page: Page, alerted: Steps) -> None:
    alerted.do(
        "INSERT INTO alert (at, kind, subject, firing, detail, is_unsendable)"
        " VALUES ('2026-01-02 00:00:00.000000Z', 'odd <b>', 'x', true, '{}', false)"
    )
    assert page.json("/alerts.json")["rows"][0]["text"] == "odd <b> x"
    assert "odd &lt;b&gt; x" in page.get("/alerts").text
