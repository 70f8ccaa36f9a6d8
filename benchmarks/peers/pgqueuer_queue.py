"""PgQueuer over asyncpg, with a job for each body and one worker with as many threads as the relay."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.types import QueueExecutionMode

from benchmarks.peers import Task, post, read_task

_INSTALLED = "SELECT to_regclass('pgqueuer') IS NOT NULL"


async def work(task: Task) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(task.concurrency))
    async with asyncpg.create_pool(task.database, min_size=2, max_size=task.concurrency) as pool:
        app = PgQueuer(AsyncpgPoolDriver(pool))
        if not await pool.fetchval(_INSTALLED):
            await app.qm.queries.install()

        @app.entrypoint("forward")
        async def forward(job: Job) -> None:
            assert job.payload is not None
            await asyncio.to_thread(post, task.url, job.payload.decode())

        bodies = [body.encode() for body in task.bodies]
        await app.qm.queries.enqueue(["forward"] * len(bodies), list(bodies), [0] * len(bodies))
        await app.run(mode=QueueExecutionMode.drain, batch_size=2 * task.concurrency)


if __name__ == "__main__":
    uvloop.run(work(read_task()))
