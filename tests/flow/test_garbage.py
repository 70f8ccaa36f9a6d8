"""Both programs leave what they have loaded when they begin to work out of later collections of garbage, and make little."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inbox.config.model import Config
from inbox.errors import RequestError
from inbox.receiver.webhook import OFFLOADED_BYTES
from tests.helpers.receiver import receiving
from tests.helpers.webhooks import config_text

RELAY = """
import contextlib, gc
from relay.daemon import process
process.run_relay = lambda *_, **__: print(gc.get_freeze_count(), len(gc.get_objects()))
process.start(process.RunOptions(grace_seconds=1, drain=True))
"""


async def test_a_receiver_that_has_started_leaves_what_is_loaded_out(config: Config) -> None:
    loaded: list[list[object]] = [[]]
    before = gc.get_freeze_count()
    async with receiving(config):
        assert gc.get_freeze_count() > before
        assert not any(each is loaded for each in gc.get_objects())


@pytest.mark.parametrize("size", [1, 2 * OFFLOADED_BYTES])
async def test_a_rejected_body_is_freed_without_a_collection(config: Config, size: int) -> None:
    async with receiving(config) as receiver:
        gc.collect()
        gc.disable()
        try:
            answer = await receiver.post(b"x" * size)
            assert answer.status_code == 400
            assert not [each for each in gc.get_objects() if isinstance(each, RequestError)]
        finally:
            gc.enable()


def test_a_relay_that_has_started_leaves_what_is_loaded_out(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "inbox.toml"
    path.write_text(config_text(database_url, "http://127.0.0.1:1/hook"), encoding="utf-8")
    environment = {**os.environ, "INBOX_CONFIG": str(path)}
    ended = subprocess.run([sys.executable, "-c", RELAY], check=True, capture_output=True, text=True, env=environment)
    left_out, walked = map(int, ended.stdout.split())
    assert left_out > 20 * walked
