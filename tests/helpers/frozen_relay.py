"""A process that locks a route as a relay does, and stops itself before it has sent all of its pipeline."""

from __future__ import annotations

import os
import signal
import sys

from tests.helpers.locks import stand_still_within_a_pipeline

from inbox.db import engine as engines
from inbox.db import order_lock
from relay.store.database import Database

if __name__ == "__main__":
    url, route, order_lock.HELD_SECONDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
    stand_still_within_a_pipeline(
        Database(engines.connect(url, application="tests")), route, lambda: os.kill(os.getpid(), signal.SIGSTOP)
    )
