"""The daemon itself, in a thread of the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from sqlalchemy import Engine

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.daemon.alert_sender import client_of
from relay.daemon.loop import Relay
from relay.destinations import build
from relay.store.database import Database
from tests.destinations.scripted import ScriptedServer
from tests.helpers.downstream import Downstream
from tests.helpers.evidence import facts
from tests.helpers.webhooks import config_text


def configured(
    url: str, concurrency: int = 8, *, destination: str = "", more: str = "", ordering: str = "strict"
) -> Config:
    """The configuration of a relay whose database is given to it, with short delays.

    `destination` is further lines of its table, `more` further tables.
    """
    plain = config_text("sqlite:///unused.db", url, schedule=("100ms", "100ms"), concurrency=concurrency)
    plain = plain.replace('ordering = "strict"', f'ordering = "{ordering}"')
    return parse_config(plain.replace("concurrency =", f"{destination}\nconcurrency =") + more)


@contextlib.contextmanager
def running(
    engine: Engine,
    downstream: Downstream | ScriptedServer,
    grace_seconds: float = 5.0,
    concurrency: int = 8,
    **more: str,
) -> Iterator[Relay]:
    """A relay at work; it is stopped when the block ends. `more` is as `configured` takes it."""
    config = configured(downstream.url, concurrency, **more)
    alerts = client_of(config)
    relay = Relay(Database(engine), config, build(config), alerts=alerts, grace_seconds=grace_seconds)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join(30)
        assert not thread.is_alive()


def kinds(engine: Engine) -> list[str]:
    """The kinds of all facts, in order."""
    return [fact["kind"] for fact in facts(engine)]
