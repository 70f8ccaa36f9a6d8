"""The call that each queue makes for a job: the same as the bare loop's, on a session of the thread."""

from __future__ import annotations

import argparse
import sys
import threading

import msgspec
import requests

_OF_THREAD = threading.local()


class Task(msgspec.Struct, frozen=True):
    """Arguments of a queue's program."""

    database: str
    url: str
    concurrency: int
    bodies: list[str]


def read_task() -> Task:
    """Read the command line, and the bodies from the standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("url")
    parser.add_argument("concurrency", type=int)
    given = parser.parse_args()
    return Task(given.database, given.url, given.concurrency, sys.stdin.read().split("\n"))


def post(url: str, body: str) -> None:
    """Post a body; an error status is an error."""
    session: requests.Session | None = getattr(_OF_THREAD, "session", None)
    if session is None:
        session = _OF_THREAD.session = requests.Session()
    session.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=15).raise_for_status()
