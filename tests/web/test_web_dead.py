"""The screen of dead letters: groups by route, cause and error, and acts that hit their group alone."""

from __future__ import annotations

import re
from html import unescape

import pytest

from relay.delivery.outcome import Failed
from relay.store import reads
from tests.helpers.kinds import ON_BOTH
from tests.helpers.page import Page
from tests.helpers.relaying import Steps
from tests.helpers.storing import an_event
from tests.web.test_web_acts import form_of, number_of, work

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
