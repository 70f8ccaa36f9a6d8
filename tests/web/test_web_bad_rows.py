"""Rows that only a hand or another version writes take no screen away: not their own, and not those of their neighbours."""

from __future__ import annotations

import itertools
import re

from tests.helpers.databases import ON_BOTH
from tests.helpers.page import OPERATOR, VIEWER, Page
from tests.helpers.relaying import Steps
from tests.helpers.worlds import fill_page

AT = "'2026-01-01 00:00:30.000000Z'"
PATHS = ("", "/deliveries", "/events/1", "/events/2", "/events/3", "/dead", "/gates", "/commands",
         "/entity?source=trivore&type=USER&id=u1", "/commands/3", "/rejected", "/alerts")  # fmt: skip
HUGE = "9" * 400
DETAILS = (
    '{"calls": [null, 1, {"status": {}, "milliseconds": {}, "url": null, "excerpt": []}], "error": {"a": 1}, "cause": []}',
    f'{{"calls": [{{"status": {HUGE}, "milliseconds": {HUGE}}}], "error": null}}',
    '{"due_at": "soon", "who": {}, "why": [], "blocks_lane": "x"}',
    '{"due_at": "99999-01-01T00:00:00Z", "error": "{0} %s {x.__class__}"}',
    f'{{"error": "{"x" * 1_000_000}"}}',
)
LONE = '{"error": "\\ud800", "cause": "\\udfff", "calls": [{"url": "\\ud800", "error": "\\ud800"}]}'
"""Halves of surrogate pairs: SQLite keeps them, and UTF-8 has no form for them."""
COMMAND = (
    "INSERT INTO relay_command (kind, selection, reason, asked_by, state, answer, sample)"
    " VALUES ('cancel', '{}', 'r', 'x', 'done', '', '{{\"groups\": [1, null, {{}}], \"deliveries\": 5, \"left_out\": []}}')"
)


def a_fact(kind: str, detail: str, seq: int, route: str) -> str:
    return (
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)"
        f" VALUES ({AT}, {seq}, '{route}', '{kind}', 'dead', 1, '{detail}')"
    )


def all_answer(page: Page) -> None:
    answers = {
        (path, actor.role): page.get(path, actor).status_code
        for each in PATHS
        for path in (each or "/", re.sub(r"$|(?=\?)", ".json", each or "/overview", count=1))
        for actor in (OPERATOR, VIEWER)
    }
    assert {key: status for key, status in answers.items() if status != 200} == {}


@ON_BOTH
def test_a_row_of_another_form_shows_as_it_can(page: Page, steps: Steps) -> None:
    fill_page(steps)
    for detail, kind in itertools.product(DETAILS, ("dead", "rescheduled")):
        steps.do(*(a_fact(kind, detail, seq, route) for seq, route in ((1, "strict"), (2, "blocking"), (3, "latest"))))
    steps.do(
        COMMAND.format('{"later": [1, {"a": null}], "route": 5}'), a_fact("superseded", '{"by": "none"}', 1, "strict")
    )
    all_answer(page)


def test_half_a_surrogate_pair_shows_as_an_escape(page: Page, steps: Steps) -> None:
    fill_page(steps)
    facts = (a_fact(kind, LONE, 2, "blocking") for kind in ("dead", "attempt_failed"))
    steps.do(*facts, COMMAND.format('{"route": "\\ud800"}'))
    all_answer(page)
    assert page.json("/commands/3.json")["command"]["selection"] == {"route": "\\ud800"}
