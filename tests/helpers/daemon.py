"""The daemon itself, in a thread of the test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import msgspec
from sqlalchemy import Engine

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.daemon.generation import PreparedConfig, prepare
from relay.daemon.loop import Relay
from relay.delivery.policy import Policies, policies
from relay.observe import Observer
from relay.steps import Steps
from relay.store.database import Database
from tests.helpers.downstream import Downstream
from tests.helpers.evidence import facts
from tests.helpers.relaying import at_work
from tests.helpers.scripted import ScriptedServer
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
    relay = Relay(Database(engine), prepare(config), grace_seconds=grace_seconds)
    with at_work(relay):
        yield relay


def kinds(engine: Engine) -> list[str]:
    """The kinds of all facts, in order."""
    return [fact["kind"] for fact in facts(engine)]


def maintenance_of(
    database: Database, config: Config, observer: Observer, steps: Steps, known: Policies | None = None
) -> Callable[[], int]:
    """The maintenance of a relay that makes no calls: each call does a round of it."""
    relay = Relay(database, PreparedConfig(config), grace_seconds=0, observer=observer)
    active = relay._generations.active
    active.work = msgspec.structs.replace(active.work, policies=dict(known or policies(config)))
    others = {"give_back", "record", "sequence", "claim", "claim_suspect"}
    table = [step for step in relay._table if step.name not in others]
    return lambda: sum(step.run(steps) for step in table)
