"""A load of webhooks over many connections, each with one request at a time, by `wrk` if it is installed."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks.harness import TOKEN

_SCRIPT = Path(__file__).with_name("webhooks.lua")
GENERATOR = "wrk" if shutil.which("wrk") else "benchmarks.load"


class Answers(msgspec.Struct):
    """Responses to a load, with losses and latencies."""

    answers: int
    """Whole responses of any status."""
    refused: int
    """Responses with a status other than 2xx."""
    lost: int
    seconds: float
    p50_ms: float
    p99_ms: float
    worst_ms: float = 0.0

    @property
    def accepted(self) -> int:
        return self.answers - self.refused

    @property
    def rate(self) -> float:
        """Accepted requests per second."""
        return self.accepted / self.seconds


def send(url: str, seconds: float, connections: int, padding: int | None = None) -> Answers:
    """Send unique webhooks from another process.

    With `padding` in bytes, this module is the generator, which also measures the worst request.
    """
    run = uuid.uuid4().hex[:12]
    if GENERATOR == "wrk" and padding is None:
        threads = min(os.cpu_count() or 1, 2, connections)
        how = (f"-t{threads}", f"-c{connections}", f"-d{seconds:g}s", "-s", str(_SCRIPT))
        command = ["wrk", *how, url, "--", run, TOKEN]
    else:
        command = [sys.executable, "-m", "benchmarks.load", url, str(seconds), str(connections), run, str(padding or 0)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return msgspec.json.decode(output.rpartition("RESULT ")[2], type=Answers)


def send_accepted(url: str, seconds: float, connections: int, padding: int | None = None) -> Answers:
    """Send webhooks, which must all be accepted."""
    answers = send(url, seconds, connections, padding)
    if answers.refused or answers.lost:
        raise SystemExit(f"of {answers.answers} answers {answers.refused} were refusals, {answers.lost} went missing")
    return answers


class _Load:
    def __init__(self, url: str, run: str, padding: int) -> None:
        self._parts = urlsplit(url)
        self._run = run
        self._padding = "x" * padding
        self._sent = 0
        self._head = (
            f"POST {self._parts.path} HTTP/1.1\r\nHost: {self._parts.netloc}\r\nContent-Type: application/json\r\n"
            f"X-Webhook-Token: {TOKEN}\r\nUser-Agent: benchmark\r\nContent-Length: "
        )
        self.refused = 0
        self.lost = 0
        self.times: list[float] = []

    async def connection(self, until: float) -> None:
        while time.monotonic() < until and await self._one_connection(until):
            pass

    async def _one_connection(self, until: float) -> bool:
        """Use a connection until the time is up or the server closes it, and return whether another may follow."""
        reader, writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        try:
            while (began := time.monotonic()) < until:
                writer.write(self._next())
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                self.times.append(time.monotonic() - began)
                self.refused += not head.startswith(b"HTTP/1.1 2")
                if b"\r\nconnection: close\r\n" in head.lower():
                    return True
        except (OSError, EOFError, ValueError):
            self.lost += 1
        finally:
            writer.close()
        return False

    def _next(self) -> bytes:
        self._sent += 1
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {"id": f"{self._run}-{self._sent}", "entityType": "USER", "eventType": "UPDATE", "timestamp": timestamp}
        if self._padding:
            event["more"] = self._padding
        body = json.dumps(event, separators=(",", ":"))
        return f"{self._head}{len(body)}\r\n\r\n{body}".encode()


async def _run(url: str, seconds: float, connections: int, run: str, padding: int) -> Answers:
    load = _Load(url, run, padding)
    began = time.monotonic()
    await asyncio.gather(*(load.connection(began + seconds) for _ in range(connections)))
    took = time.monotonic() - began
    percentiles = statistics.quantiles(load.times, n=100)
    p50, p99 = (round(percentiles[n - 1] * 1000, 3) for n in (50, 99))
    return Answers(len(load.times), load.refused, load.lost, took, p50, p99, round(max(load.times) * 1000, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    parser.add_argument("connections", type=int)
    parser.add_argument("run", help="a word that no other run uses")
    parser.add_argument("padding", type=int, help="bytes that each body has more")
    given = parser.parse_args()
    answers = uvloop.run(_run(given.url, given.seconds, given.connections, given.run, given.padding))
    print("RESULT", msgspec.json.encode(answers).decode())


if __name__ == "__main__":
    main()
