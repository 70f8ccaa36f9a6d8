"""Program of a process that migrates at the same moment as others."""

from __future__ import annotations

from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

from inbox.db import engine as engines
from inbox.db import migrate

Result = tuple[str | None, str | None] | str


def migrate_together(url: str, barrier: Barrier, results: SimpleQueue[Result]) -> None:
    """Wait for the others, migrate, and report the revision before and after, or the error."""
    barrier.wait(60)
    engine = engines.connect(url, application="tests")
    try:
        done = migrate.upgrade(engine)
        results.put((done.before, done.after))
    except Exception as error:  # noqa: BLE001  # the test tells what it was
        results.put(repr(error))
    engine.dispose()
