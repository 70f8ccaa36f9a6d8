"""Each recipe does what its page says: the page is followed word by word, with services of the test for those of the page."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.scripted import ScriptedServer
from tests.recipes.walking import walking


def test_issues_of_gitlab_become_messages(sqlite_database_url: str, tmp_path: Path, service: ScriptedServer) -> None:
    secrets = {"GITLAB_TOKEN": "a-token", "CHANNEL_URL": "https://hooks.slack.com/services/T0001/B0001/abc"}
    with walking(
        "gitlab-to-chat", tmp_path, sqlite_database_url, {"https://hooks.slack.com": service}, **secrets
    ) as walk:
        walk.follow()
    assert len(service.seen) == 1
