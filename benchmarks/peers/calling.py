"""The call of each queue for a job: like the bare loop's, on a session for each thread."""

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
    """Read the command line, and the bodies from standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("url")
    parser.add_argument("concurrency", type=int)
    given = parser.parse_args()
    return Task(given.database, given.url, given.concurrency, sys.stdin.read().split("\n"))


def post(url: str, body: str) -> None:
    """Post a body, and raise an error for an error status."""
    session: requests.Session | None = getattr(_OF_THREAD, "session", None)
    if session is None:
        session = _OF_THREAD.session = requests.Session()
    session.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=15).raise_for_status()
