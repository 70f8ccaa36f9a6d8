"""procrastinate: a job for each body, worked off by one worker whose jobs run in as many threads as the relay has."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import procrastinate

from benchmarks.peers import Task, post, read_task


async def work(task: Task) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(task.concurrency))
    connector = procrastinate.PsycopgConnector(conninfo=task.database, min_size=4, max_size=task.concurrency)
    app = procrastinate.App(connector=connector)

    @app.task(name="forward")
    def forward(body: str) -> None:
        post(task.url, body)

    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        await forward.batch_defer_async(*({"body": body} for body in task.bodies))
        await app.run_worker_async(concurrency=task.concurrency, wait=False, install_signal_handlers=False)


if __name__ == "__main__":
    asyncio.run(work(read_task()))
