"""`/deliveries`: filters, pages, counts, acts on all that match, and values of others that harm nobody."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec
import pytest

from inbox.db import listing
from relay.delivery.outcome import Call, Failed
from relay.web.screens import lists
from tests.helpers.kinds import ON_BOTH
from tests.helpers.page import VIEWER, Page
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import an_event
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
