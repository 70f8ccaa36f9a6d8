"""Each recipe does what its page says: the page is followed word by word, with services of the test for those of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES
from tests.helpers.scripted import answer, serving
from tests.recipes.walking import follow

SLACK = "https://hooks.slack.com"
INCOMING_WEBHOOK = f"{SLACK}/services/T0001/B0001/abc"


def test_issues_of_gitlab_become_messages(sqlite_database_url: str, tmp_path: Path) -> None:
    secrets = {"GITLAB_TOKEN": "a-token", "CHANNEL_URL": INCOMING_WEBHOOK}
    with serving(answer(200, b"ok")) as slack:
        follow("gitlab-to-chat", tmp_path, sqlite_database_url, {SLACK: slack}, **secrets)
        assert len(slack.seen) == 1


def test_a_message_becomes_a_ticket_and_a_rejected_one_does_after_a_replay(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    secrets = {
        "SLACK_SIGNING_SECRET": "8f742231b10e8888abcd99yyyzzz85a5",
        "TRACKER_URL": "https://tracker.example.com/api/tickets",
        "TRACKER_TOKEN": "tracker-token",
    }
    with serving(answer(201, {"id": 1}), answer(422, {"error": "no title"}), answer(201, {"id": 2})) as tracker:
        follow("slack-to-ticket", tmp_path, sqlite_database_url, {"https://tracker.example.com": tracker}, **secrets)
        first, rejected, replayed = tracker.seen
    assert rejected.body == replayed.body
    assert len({seen.headers["idempotency-key"] for seen in (first, rejected, replayed)}) == 3


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_destination_that_is_down_delays_no_other(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    secrets = {"GITHUB_SECRET": "one", "AUDIT_SECRET": "two", "TEAM_URL": INCOMING_WEBHOOK}
    database_url = request.getfixturevalue(f"{kind}_database_url")
    with (
        serving(answer(204)) as ours,
        serving(answer(503), answer(204)) as audit,
        serving(answer(200, b"ok")) as slack,
    ):
        services = {"https://ours.example.com": ours, "https://audit.example.com": audit, SLACK: slack}
        folder = follow("fan-out", tmp_path, database_url, services, **secrets)
        assert ours.seen[0].body == (folder / "pull.json").read_bytes()
        assert (len(ours.seen), len(slack.seen)) == (1, 1)


def test_every_webhook_becomes_a_line_of_the_log(sqlite_database_url: str, tmp_path: Path) -> None:
    folder = follow("audit-log", tmp_path, sqlite_database_url, {}, GITHUB_SECRET="one", STRIPE_SECRET="two")
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines() if line]
    assert len({line["key"] for line in lines}) == 4


def test_events_of_one_and_of_a_batch_are_counted_once(sqlite_database_url: str, tmp_path: Path) -> None:
    follow("cloudevents-to-function", tmp_path, sqlite_database_url, {}, EVENTS_TOKEN="a-token")


def test_every_recipe_is_followed_by_a_test_and_has_the_same_parts() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for page, text in PAGES.items():
        if page.startswith("docs/recipes/") and not page.endswith("README.md"):
            assert f'"{Path(page).stem}"' in tests, f"no test follows {page}"
            headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
            parts = ["Configure", "Input", "Result", "Troubleshoot"]
            assert [each for each in headings if each in parts] == parts, page
