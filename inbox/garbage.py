"""Python's collector of garbage, in processes that run for weeks."""

from __future__ import annotations

import gc


def freeze_loaded() -> None:
    """Leave everything that is loaded by now out of later collections: call it when a process is ready to work.

    Else each full collection walks all modules and classes, while everything waits: some 40 ms for every 4,000 webhooks where
    64 are under way (`python -m benchmarks.receiver_cpu` tells the longest). What is left out and becomes a cycle stays in
    memory.
    """
    gc.freeze()  # after a start, gc.collect() takes 50 ms and finds 14 objects
