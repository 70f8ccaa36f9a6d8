"""Lists of the page: filters, pages, counts, and acts on a row, a group, and all that match."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import urlencode

import msgspec
import pytest

from inbox.db import listing
from inbox.db.intake import Rejected
from relay.delivery.alerts import Alert
from relay.delivery.outcome import Call, Failed
from relay.operations.asks import Selection
from relay.store import reads
from relay.store.alerts import note
from relay.store.operator import commands, execution
from relay.web.screens import lists
from relay.web.screens.lists import COLUMNS
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import START, an_event
from tests.helpers.webhooks import body
from tests.web.test_web_acts import form_of, number_of, work


def seqs(page: Page, query: str = "") -> list[int]:
    return [row["seq"] for row in page.json(f"/deliveries.json{query}")["rows"]]


@pytest.fixture
def some(steps: Steps) -> Steps:
    """Of u1 delivered (1) and waiting for a retry (3); u2 dead (2); an event of no route (4)."""
    unavailable = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, 503)
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.attempt(DONE)
    steps.attempt(HOPELESS)
    steps.arrive(an_event(3, "u1"))
    steps.attempt(Failed((unavailable,), "server_error", "forward answered 503"))
    steps.receive(msgspec.structs.replace(an_event(4, "g1", routes=[]), entity_type="GROUP", event_type="MADE"))
    return steps


@ON_BOTH
@pytest.mark.usefixtures("some")
def test_a_time_at_an_end_of_the_calendar_is_a_time(page: Page) -> None:
    assert seqs(page, "?since=0001-01-01") == seqs(page, "?until=9999-12-31T23:59:59.999999Z") == [4, 3, 2, 1]
    assert seqs(page, "?until=0001-01-01") == seqs(page, "?since=9999-12-31") == []


@ON_BOTH
@pytest.mark.usefixtures("some")
def test_every_filter_narrows_the_list(page: Page) -> None:
    assert seqs(page) == [4, 3, 2, 1]
    assert seqs(page, "?state=dead") == [2]
    assert seqs(page, "?state=retrying") == seqs(page, "?state=ready") == seqs(page, "?status=503") == [3]
    assert seqs(page, "?state=unrouted") == seqs(page, "?entity=GROUP") == seqs(page, "?event_type=MADE") == [4]
    assert seqs(page, "?entity=USER/u1") == [3, 1]
    assert seqs(page, "?entity=USER/u1&state=delivered") == [1]
    assert (
        seqs(page, "?route=strict")
        == seqs(page, "?destination=audit")
        == seqs(page, "?route=strict&limit=5")
        == [3, 2, 1]
    )
    assert seqs(page, "?error=EMAIL") == [2]
    assert seqs(page, "?source=trivore&before=3") == [2, 1]
    assert seqs(page, "?since=2026-01-01T00:00:01Z") == []
    assert seqs(page, "?until=2026-01-01T00:00:01Z&since=2026-01-01") == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("query", "says", "field"),
    [
        ("?state=daed", "there is no state 'daed'; did you mean 'dead'?", "state"),
        ("?route=srict", "there is no route 'srict'; did you mean 'strict'?", "route"),
        ("?destination=nowhere", "there is no destination 'nowhere'", "destination"),
        ("?source=trivor", "there is no source 'trivor'; did you mean 'trivore'?", "source"),
        ("?entity=/u1", "entity '/u1': write TYPE/ID", "entity"),
        ("?status=42", "status '42'", "status"),
        ("?since=yesterday", "since 'yesterday'", "since"),
        ("?limit=0", "limit '0'", "limit"),
        ("?limit=1&limit=2", "limit is given twice", "limit"),
        ("?rout=strict", "there is no filter 'rout'; did you mean 'route'?", "rout"),
    ],
)
def test_a_filter_that_makes_no_sense_is_named_and_stays_in_its_form(
    page: Page, query: str, says: str, field: str
) -> None:
    answer = page.get(f"/deliveries.json{query}")
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert says in answer.json()["detail"]
    shown = page.get(f"/deliveries{query}&error=kept")
    assert shown.status_code == 400
    assert 'name="state"' in shown.text
    assert 'role="alert"' in shown.text


@pytest.mark.usefixtures("some")
def test_pages_follow_each_other_and_only_the_first_counts(page: Page) -> None:
    first = page.json("/deliveries.json?limit=2")
    assert ([row["seq"] for row in first["rows"]], first["before"], first["matching"]) == ([4, 3], 3, 4)
    second = page.json("/deliveries.json?limit=2&before=3")
    assert ([row["seq"] for row in second["rows"]], second["before"], second["matching"]) == ([2, 1], None, None)
    assert 'rel="next" href="/deliveries?limit=2&amp;before=3"' in page.get("/deliveries?limit=2").text
    assert "4 deliveries match." in page.get("/deliveries?limit=2").text
    assert seqs(page, "?before=0") == []
    assert "No delivery matches." in page.get("/deliveries?before=1").text


def test_a_count_ends_at_500(page: Page, steps: Steps) -> None:
    steps.receive(*(an_event(n) for n in range(1, 503)))
    shown = page.get("/deliveries")
    assert "500+ deliveries match." in shown.text
    assert page.json("/deliveries.json")["matching"] == 501
    assert page.json("/deliveries.json?state=received")["matching"] == 501


def test_a_search_whose_time_is_over_says_how_far_it_looked_and_goes_on(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_WINDOW", 2)
    monkeypatch.setattr(lists, "LONGEST_SECONDS", -1.0)
    steps.arrive(an_event(1, "u1"))
    steps.attempt(DONE)
    steps.arrive(*(an_event(n, f"u{n}") for n in range(2, 6)))
    shown = page.get("/deliveries?state=delivered")
    assert "2 events were looked through." in shown.text
    assert "None of these events matches." in shown.text
    assert "At least 0 deliveries match." in shown.text
    assert 'href="/deliveries?state=delivered&amp;before=4">Go on below event 4</a>' in shown.text
    found = page.json("/deliveries.json?state=delivered&before=2")
    assert [row["seq"] for row in found["rows"]] == [1]
    assert found["before"] is None or page.json("/deliveries.json?state=delivered&before=1")["before"] is None


@pytest.mark.usefixtures("some")
def test_operators_act_on_all_that_match_and_on_one_row(page: Page) -> None:
    shown = page.get("/deliveries?state=dead&route=strict&error=email").text
    for act, label in (("replay", "Replay"), ("cancel", "Cancel")):
        assert f'href="/acts/{act}?route=strict&amp;error=email&amp;state=dead">{label} all that match</a>' in shown
        assert f'href="/acts/{act}?seq=2&amp;route=strict">{label}</a>' in shown
    retrying = page.get("/deliveries?state=retrying&entity=USER/u1").text
    assert 'href="/acts/retry?entity_type=USER&amp;entity_id=u1">Retry all that match</a>' in retrying
    assert "Choose a state to act on all that match." in page.get("/deliveries?route=strict").text
    offers = page.json("/deliveries.json?state=dead")["offers"]
    assert offers == [{"kind": kind, "selection": {"state": "dead"}} for kind in ("replay", "cancel")]


@ON_BOTH
@pytest.mark.usefixtures("some")
@pytest.mark.parametrize(
    ("query", "acts"),
    [
        ("state=dead", {"replay": [2], "cancel": [2]}),
        ("state=ready", {"cancel": [3]}),
        ("state=delivered&entity=USER/u1", {"replay": [1]}),
        ("state=delivered&entity=USER/u1&since=2026-01-01", {"replay": [1]}),
    ],
)
def test_an_act_on_all_that_match_is_on_exactly_those(page: Page, query: str, acts: dict[str, list[int]]) -> None:
    found = page.json(f"/deliveries.json?{query}")
    assert found["why_none"] is None
    planned = {
        offer["kind"]: page.json(f"/api/v1/acts/{offer['kind']}?{urlencode(offer['selection'])}")["deliveries"]
        for offer in found["offers"]
    }
    assert {act: [row["seq"] for row in rows] for act, rows in planned.items()} == acts


@pytest.mark.usefixtures("some")
@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("route=strict", "Choose a state"),
        ("state=in_flight", "No act changes"),
        ("state=unrouted", "No act changes"),
        ("state=superseded", "No act changes"),
        ("state=delivered", "replayed by entity"),
        ("state=delivered&entity=USER/u1&status=200", "know no error and no status"),
        ("state=ready&error=x", "know no error and no status"),
        ("state=dead&since=2d", "count times from the failure"),
    ],
)
def test_a_listing_without_an_act_on_exactly_its_rows_says_why(page: Page, query: str, why: str) -> None:
    found = page.json(f"/deliveries.json?{query}")
    assert found["offers"] == []
    assert why in found["why_none"]


@pytest.mark.usefixtures("some")
def test_chosen_rows_have_a_plan_of_exactly_these(page: Page) -> None:
    shown = page.get("/deliveries").text
    assert shown.count('type="checkbox" name="deliveries"') == 3
    assert '<button formaction="/acts/cancel" class="danger">Cancel</button>' in shown
    planned = page.get("/acts/cancel?deliveries=none&deliveries=3/strict&deliveries=2/strict")
    assert "<strong>2</strong> deliveries" in planned.text
    for wrong, why in (
        ("deliveries=none", "choose at least one"),
        ("deliveries=none&deliveries=x/strict", "deliveries"),
        ("&".join(f"deliveries={n}/strict" for n in range(201)), "&lt;= 200"),
    ):
        answer = page.get(f"/acts/replay?{wrong}")
        assert (answer.status_code, why in answer.text) == (400, True), wrong
    assert "checkbox" not in page.get("/deliveries", actor=VIEWER).text


@pytest.mark.usefixtures("some")
def test_chosen_rows_of_several_routes_have_one_plan_of_exactly_these(page: Page, steps: Steps) -> None:
    steps.arrive(an_event(4, "u4", routes=["strict", "blocking"]), an_event(5, "u5", routes=["strict", "blocking"]))
    chosen = ("none", "6/strict", "5/blocking", "2/strict")
    planned = page.get("/acts/cancel?" + "&".join(f"deliveries={each}" for each in chosen))
    assert "<strong>3</strong> deliveries" in planned.text
    confirmed = page.post("/acts/cancel", {**form_of(planned.text), "reason": "not wanted"})
    assert work(steps.database, number_of(confirmed.headers["location"])).affected == 3
    cancelled = steps.rows("SELECT seq, route FROM delivery_log WHERE kind = 'cancelled' ORDER BY seq")
    assert [tuple(row.values()) for row in cancelled] == [(2, "strict"), (5, "blocking"), (6, "strict")]


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
"""Each is a part of another one, or equal to one in another case, or matches one as a pattern."""


def die(steps: Steps, errors: tuple[str, ...], route: str = "strict", first: int = 1) -> None:
    steps.arrive(*(an_event(first + n, f"u{first + n}", routes=[route]) for n in range(len(errors))))
    for error in errors:
        steps.attempt(Failed((), "mapping", error), route)


def links(html: str, kind: str) -> list[str]:
    return [unescape(found) for found in re.findall(rf'href="(/acts/{kind}\?[^"]*error_sha256=[^"]*)"', html)]


@ON_BOTH
def test_dead_letters_are_grouped_with_first_last_count_and_sample(page: Page, steps: Steps) -> None:
    die(steps, ("a", "a", "b"))
    steps.advance(60)
    die(steps, ("a",), first=4)
    die(steps, ("a",), "blocking", first=5)
    groups = page.json("/dead.json")["groups"]
    assert [(each["route"], each["error"], each["count"], each["blocked"], each["sample_seq"]) for each in groups] == [
        ("strict", "a", 3, 0, 4),
        ("blocking", "a", 1, 1, 5),
        ("strict", "b", 1, 0, 3),
    ]
    assert groups[0]["first_died_at"] < groups[0]["last_died_at"]
    assert [each["count"] for each in page.json("/dead.json?route=blocking")["groups"]] == [1]
    assert page.json("/dead.json?cause=exhausted")["groups"] == []
    assert [each["count"] for each in page.json("/dead.json?since=2026-01-01T00:00:30Z")["groups"]] == [1, 1]


@ON_BOTH
def test_an_act_on_a_group_hits_no_other_group(page: Page, steps: Steps) -> None:
    die(steps, ERRORS)
    die(steps, ERRORS, "latest", first=100)
    html = page.get("/dead?route=strict").text
    replays = links(html, "replay")
    assert len(replays) == len(ERRORS)
    for number, path in enumerate(replays, start=1):
        answer = page.get(path)
        assert "<strong>1</strong> delivery<" in answer.text, path
        done = page.post("/acts/replay", {**form_of(answer.text), "reason": "one group"})
        assert done.status_code == 303, done.text
        assert work(steps.database, number_of(done.headers["location"])).affected == 1
        dead = [(seq, route) for seq, route, state in steps.states() if state == "dead"]
        assert len(dead) == 2 * len(ERRORS) - number
    assert {route for _, route in dead} == {"latest"}


def test_only_the_newest_dead_letters_are_grouped_and_the_page_says_so(
    page: Page, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MOST_GROUPED", 3)
    die(steps, ("a", "b", "c", "d"))
    found = page.json("/dead.json")
    assert ([each["error"] for each in found["groups"]], found["is_whole"]) == (["d", "c", "b"], False)
    assert "newest dead letters are grouped here" in page.get("/dead").text


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


def test_cancelling_a_group_takes_only_those_that_died_since_the_time_of_the_filter(page: Page, steps: Steps) -> None:
    """Both arrived long before it: the time is that of the death, as in the list."""
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    steps.attempt(Failed((), "mapping", "a"))
    steps.advance(60)
    steps.attempt(Failed((), "mapping", "a"))
    (path,) = links(page.get("/dead?since=2026-01-01T00:00:30Z").text, "cancel")
    done = page.post("/acts/cancel", {**form_of(page.get(path).text), "reason": "no longer wanted"})
    assert work(steps.database, number_of(done.headers["location"])).affected == 1
    assert [(seq, state) for seq, _, state in steps.states() if state == "dead"] == [(1, "dead")]


def test_a_group_links_to_its_deliveries(page: Page, steps: Steps) -> None:
    die(steps, ("a & b",))
    assert 'href="/deliveries?state=dead&amp;route=strict&amp;error=a+%26+b"' in page.get("/dead").text


SECRET = "hunter2"


def rejected(content: bytes | None, source: str = "trivore", reason: str = "no version") -> Rejected:
    headers = None if content is None else {"content-type": "application/json", "x-request-id": SECRET}
    return Rejected(START, source, 422, "invalid_event", reason, "version", "192.0.2.1", b"\0" * 32, headers, content)


def test_bodies_and_headers_are_in_no_list(page: Page, steps: Steps) -> None:
    steps.intake.reject(rejected(b'{"password": "hunter2"}'))
    for actor in (VIEWER, None):
        given = {} if actor is None else {"actor": actor}
        (row,) = page.json("/rejected.json", **given)["rows"]
        assert SECRET not in str(row)
        assert set(row) == {*COLUMNS, "is_kept"}
        assert SECRET not in page.get("/rejected", **given).text


def test_a_request_that_can_be_read_now_is_readmitted_and_delivered(page: Page, steps: Steps) -> None:
    steps.intake.reject(rejected(body()), rejected(b"{}"), rejected(body(), source="gone"), rejected(body()))
    html = page.get("/acts/readmit?source=trivore").text
    assert "<strong>2</strong> requests" in html
    assert "1: still rejected: " in html
    done = page.post("/acts/readmit", {**form_of(html), "reason": "the preset is fixed"})
    assert done.status_code == 303, done.text
    progress = work(steps.database, number_of(done.headers["location"]))
    assert (progress.state, progress.affected) == ("done", 2)
    assert progress.answer == "2 requests readmitted; 1 could not be: see error"
    rows = page.json("/rejected.json")["rows"]
    assert [(row["readmitted_seq"], row["readmitted_by"]) for row in rows] == [
        (1, "olga"),
        (None, None),
        (None, None),
        (1, "olga"),
    ]
    steps.until_nothing_is_due()
    assert steps.states() == []
    assert "is event" in page.get("/rejected").text


def test_all_that_match_means_what_the_filter_means(page: Page, steps: Steps) -> None:
    steps.intake.reject(rejected(body(), reason="100% wrong"), rejected(body(), reason="100 wrong"))
    link = 'href="/acts/readmit?error=100%25%20wrong"'
    assert link in page.get("/rejected?error=100%25+wrong").text
    assert "<strong>1</strong> request<" in page.get("/acts/readmit?error=100%25+wrong").text
    assert "I mean everything" in page.get("/acts/readmit").text


def ask(steps: Steps, number: int = 1) -> list[int]:
    return [
        commands.ask(steps.database, "replay", Selection(route="strict"), who="kim", why=f"reason {n}", planned=250)
        for n in range(number)
    ]


def test_a_command_says_how_far_it_is(page: Page, steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 251)))
    steps.record_all(steps.claim_due(250), HOPELESS)
    (number,) = ask(steps)
    execution.work_on(steps.work, number)
    assert "200 of 250 changed so far" in page.get(f"/commands/{number}").text
    assert '<progress class="" aria-label="progress" max="250" value="200">' in page.get(f"/commands/{number}").text


def test_a_command_is_stopped_by_name_and_goes_on(page: Page, steps: Steps) -> None:
    (number,) = ask(steps)
    assert "Stop</button>" in page.get(f"/commands/{number}").text
    why = {"command": number, "reason": " the wrong route "}
    answer = page.post("/acts/stop", why)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/commands/{number}")
    stopped = page.json(f"/commands/{number}.json")["command"]
    assert (stopped["state"], stopped["answer"]) == ("cancelled", "stopped by olga: the wrong route")
    assert "Continue</button>" in page.get(f"/commands/{number}").text
    assert page.post("/acts/continue", why).status_code == 303
    assert page.json(f"/api/v1/commands/{number}")["command"]["state"] == "running"
    again = page.post("/acts/continue", why)
    assert again.status_code == 409
    assert "only one that was stopped goes on" in again.text
    assert "> the wrong route </textarea>" in again.text
    rows = page.json("/commands.json")["rows"]
    assert [(row["kind"], row["asked_by"], row["reason"]) for row in rows[:2]] == [
        ("continue", "olga", "the wrong route"),
        ("stop", "olga", "the wrong route"),
    ]


@pytest.mark.parametrize("reason", ["", " ", "…", "?!", "x" * 2001])
def test_a_stop_needs_a_reason(page: Page, steps: Steps, reason: str) -> None:
    (number,) = ask(steps)
    assert page.post("/acts/stop", {"command": number, "reason": reason}).status_code == 400
    assert page.post("/api/v1/acts/stop", json={"command": number, "reason": reason}).status_code == 400
    assert page.json(f"/commands/{number}.json")["command"]["state"] == "asked"


def test_the_api_stops_what_is_there_and_open(page: Page, steps: Steps) -> None:
    (number,) = ask(steps)
    order = {"command": number, "reason": "the wrong route"}
    for act in ("stop", "continue"):
        answer = page.post(f"/api/v1/acts/{act}", json=order)
        assert (answer.status_code, answer.headers["location"]) == (202, f"/api/v1/commands/{number}")
    execution.work_on(steps.work, number)
    ended = page.post("/api/v1/acts/stop", json=order)
    assert (ended.status_code, "has ended" in ended.json()["detail"]) == (409, True)
    missing = page.post("/api/v1/acts/stop", json={**order, "command": 99})
    assert (missing.status_code, missing.json()["detail"]) == (404, "there is no command 99")


def test_a_number_that_is_none_is_not_there(page: Page) -> None:
    for path in ("/commands/7", "/commands/x", "/commands/99999999999999999999"):
        assert page.get(path).status_code == 404, path
    assert page.post("/acts/stop", {"command": 7, "reason": "x y"}).status_code == 404


@pytest.fixture
def alerted(steps: Steps) -> Steps:
    """Six changes: `crm` was behind twice and recovered, two sources are silent."""
    changes = [("backlog_old", "crm", True), ("backlog_old", "crm", False)] * 2 + [
        ("source_silent", "one", True),
        ("source_silent", "two", True),
    ]
    for kind, subject, firing in changes:
        with steps.database.write() as transaction:
            detail = {"seq": 7, "age_seconds": 900, "silent_seconds": 60}
            alert = Alert(kind, subject, firing=firing, detail=detail)  # type: ignore[arg-type]  # one of its kinds
            note(transaction, [alert], transaction.take_order_lock())
        steps.clock.advance(60)
    return steps


def test_those_that_fire_come_first_and_all_are_worded(page: Page, alerted: Steps) -> None:
    assert alerted.states() == []
    found = page.json("/alerts.json")
    assert [alert["subject"] for alert in found["firing"]] == ["one", "two"]
    assert [(row["subject"], row["firing"]) for row in found["rows"]][:3] == [
        ("two", True),
        ("one", True),
        ("crm", False),
    ]
    assert found["rows"][2]["text"] == "route crm is no longer behind"
    assert "Firing now" in page.get("/alerts").text


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("kind=backlog_old", 4),
        ("subject=one", 1),
        ("since=2026-01-01T00:04:00Z", 2),
        ("until=2026-01-01T00:01:00Z", 1),
    ],
)
def test_the_filter_is_for_the_history_and_hides_nothing_that_fires(
    page: Page, alerted: Steps, query: str, rows: int
) -> None:
    assert alerted.states() == []
    found = page.json(f"/alerts.json?{query}")
    assert (len(found["rows"]), len(found["firing"])) == (rows, 2)


def test_a_row_of_another_version_is_shown_beside_the_others(page: Page, alerted: Steps) -> None:
    alerted.do(
        "INSERT INTO alert (at, kind, subject, firing, detail, is_unsendable)"
        " VALUES ('2026-01-02 00:00:00.000000Z', 'odd <b>', 'x', true, '{}', false)"
    )
    assert page.json("/alerts.json")["rows"][0]["text"] == "odd <b> x"
    answer = page.get("/alerts")
    assert answer.status_code == 200
    assert "odd &lt;b&gt; x" in answer.text
