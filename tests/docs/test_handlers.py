"""The handler on docs/how-to/write-a-handler.md, with the configuration beside it, in a real relay."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from inbox.db import engine as engines
from inbox.loader.load import parse_config
from relay import destinations, handler
from relay.delivery.outcome import RULES
from tests.docs.pages import PAGES, the_block
from tests.helpers.processes import site
from tests.helpers.receiver import receiving
from tests.helpers.tables import facts
from tests.helpers.webhooks import TOKEN, body

PAGE = PAGES["docs/how-to/write-a-handler.md"]
HANDLER, CONFIG = (the_block("docs/how-to/write-a-handler.md", info) for info in ("python", "toml"))
MESSAGES = the_block("docs/how-to/receive-chat-messages.md", "toml")


async def receive(config: str, *payloads: bytes) -> None:
    """Have a receiver take these in."""
    async with receiving(parse_config(config)) as receiver:
        for payload in payloads:
            assert (await receiver.post(payload)).status_code == 200


def test_the_example_does_what_it_says(
    sqlite_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEBHOOK_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handlers.py").write_text(HANDLER, encoding="utf-8")
    config = f"[database]\nurl = {json.dumps(sqlite_database_url)}\n{CONFIG}"
    asyncio.run(receive(config, body("u1"), body("u2", eventType="DELETE"), body("u3", draft=True)))
    with site(tmp_path, config) as place:
        relay = place.relay("--drain")
        assert relay.ends() == 0, relay.output

    engine = engines.connect(sqlite_database_url, application="tests")
    assert sorted((fact["seq"], fact["kind"]) for fact in facts(engine)) == [
        (1, "delivered"),
        (2, "dead"),
        (3, "attempt_failed"),
    ]
    engine.dispose()
    written = (tmp_path / "changes.txt").read_text()
    assert re.fullmatch(r"USER u1 changed, msg_[0-9a-f]{32}-0\n", written)


def test_every_exception_error_class_and_field_of_the_page_exists() -> None:
    for name in (*handler.__all__, *handler.Event.__struct_fields__):
        assert f"`{name}" in PAGE
    assert {"handler_retry", "handler_abort", "crashed", "unknown", "not_sent"} <= RULES.keys()


def test_the_example_of_messages_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handlers.py").write_text(HANDLER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHAT_HOOK_URL", "https://hooks.example.com/services/x")
    assert destinations.build(parse_config(MESSAGES)).keys() == {"to-ours", "to-chat"}
