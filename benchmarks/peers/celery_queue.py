"""Celery over a Redis that waits for its disk, with a message for each body and one worker with threads.

Messages are acknowledged after the task (`acks_late`), as no webhook may get lost; results are not kept. Features for
clusters are off, as the documentation advises for speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from celery import Celery

from benchmarks.harness import REAL_DISK, free_port
from benchmarks.peers import post, read_task

QUEUE = "celery"
app = Celery(broker=os.environ.get("PEER_BROKER"))
app.conf.update(
    task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True
)


@app.task(name="forward")
def forward(body: str) -> None:
    post(os.environ["PEER_URL"], body)


@contextmanager
def broker() -> Iterator[str]:
    """Run a Redis that syncs every write to disk before it answers."""
    with tempfile.TemporaryDirectory(prefix="inbox-relay-", dir=REAL_DISK) as folder:
        port = str(free_port())
        options = ("--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", "")
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        with subprocess.Popen(["redis-server", *options, *durable], stdout=subprocess.DEVNULL) as server:
            try:
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                server.terminate()


def main() -> None:
    task = read_task()
    with broker() as url:
        client = redis.Redis.from_url(url)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        app.conf.broker_url = url
        for body in task.bodies:
            forward.delay(body)
        environment = {**os.environ, "PEER_BROKER": url, "PEER_URL": task.url}
        options = ("-P", "threads", "-c", str(task.concurrency), "--loglevel", "ERROR")
        lean = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery_queue", "worker", *options, *lean]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as worker:
            while (client.llen(QUEUE) or client.hlen("unacked")) and worker.poll() is None:
                time.sleep(0.1)
            worker.terminate()


if __name__ == "__main__":
    main()
