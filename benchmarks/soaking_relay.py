"""A relay with a retention of minutes, which no configuration allows: for `benchmarks.soak`, on its throwaway database."""

from __future__ import annotations

import argparse
import signal
from types import FrameType

import msgspec

from inbox.config.model import Retention
from inbox.config.values import Age
from inbox.db import engine as engines
from inbox.loader.load import read_config
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.store import retention as rounds
from relay.store.database import Database
from relay.store.retention import STEPS

ROUND_EVERY_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=int)
    minutes: int = parser.parse_args().minutes
    rounds.ROUND_EVERY_SECONDS = ROUND_EVERY_SECONDS
    config = read_config()
    ages = dict.fromkeys(STEPS, Age(60 * minutes))
    retention = msgspec.structs.replace(Retention(), **ages)
    config = msgspec.structs.replace(config, retention=retention)
    engine = engines.connect(config.database.url, application="inbox-relay")
    relay = Relay(Database(engine), prepare(config), grace_seconds=5)

    def stop(_number: int, _frame: FrameType | None) -> None:
        relay.stop()

    signal.signal(signal.SIGTERM, stop)
    relay.run()


if __name__ == "__main__":
    main()
