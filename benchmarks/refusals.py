"""Times a 401 for each source of a receiver that has all kinds, against one for a source that does not exist.

Run it with `.venv/bin/python -m benchmarks.refusals`. Each round asks every source once, in a random order, over one connection to
a real worker. Printed is the median over the rounds of the difference to the unknown source of the same round, in
microseconds, with its confidence interval of 99 % by order statistics. A source stands out if 0 lies outside of it.
"""

from __future__ import annotations

import json
import math
import random
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.support import Kind, configured, databases, free_port, machine, running
from inbox.clock import SystemClock

SOURCES = """
[sources.bearer]
preset = "trivore"
auth = { kind = "bearer", secrets = ["benchmark-bearer"] }
[sources.github]
preset = "github"
secrets = ["benchmark-secret"]
[sources.slack]
preset = "slack"
secrets = ["benchmark-secret"]
[sources.standard]
preset = "standard-webhooks"
secrets = ["whsec_YmVuY2htYXJrLXNlY3JldA==", "whsec_YmVuY2htYXJrLXNlY3JldDI="]
[sources.custom]
preset = "custom"
secrets = ["benchmark-secret"]
[sources.custom.event]
type = "body.type"
[sources.custom.signature]
header = "X-Acme-Signature"
algorithm = "sha512"
"""
UNKNOWN = "nobody"
NAMES = (UNKNOWN, "trivore", "bearer", "github", "slack", "standard", "custom")
FIELDS = (
    "Content-Type: application/json",
    f"X-Hub-Signature-256: sha256={'0' * 64}",
    f"X-Slack-Signature: v0={'0' * 64}",
    f"X-Acme-Signature: {'0' * 128}",
    "webhook-id: msg_1",
    f"webhook-signature: v1,{'A' * 43}=",
)
"""Headers that each source looks at, so that all of its checks are made."""
Z_99 = 2.576


def asked(name: str, body: bytes) -> bytes:
    """A request that is refused, written out."""
    now = int(SystemClock().now().timestamp())
    timed = (f"X-Slack-Request-Timestamp: {now}", f"webhook-timestamp: {now}")
    lines = (f"POST /webhooks/{name} HTTP/1.1", "Host: localhost", *FIELDS, *timed, f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def refused(connection: socket.socket, sent: bytes) -> float:
    """Microseconds until the whole 401 is there."""
    began = time.perf_counter()
    connection.sendall(sent)
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    took = time.perf_counter() - began
    if not answer.startswith(b"HTTP/1.1 401"):
        raise SystemExit(f"no refusal: {answer!r}")
    return took * 1e6


def interval(sample: Sequence[float]) -> tuple[float, float]:
    """The 99 % confidence interval of the median."""
    placed, half = sorted(sample), Z_99 * math.sqrt(len(sample)) / 2
    middle = len(sample) / 2
    return placed[max(int(middle - half), 0)], placed[min(math.ceil(middle + half), len(sample) - 1)]


def measured(port: int, body: bytes, rounds: int) -> dict[str, list[float]]:
    """The differences to the unknown source, round by round; the first tenth warms up."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(rounds + rounds // 10):
            took = {name: refused(connection, asked(name, body)) for name in random.sample(NAMES, len(NAMES))}
            if number >= rounds // 10:
                for name, microseconds in took.items():
                    found[name].append(microseconds if name == UNKNOWN else microseconds - took[UNKNOWN])
    return found


def main(
    *,
    rounds: Annotated[int, typer.Option(min=20, help="With small bodies; with large ones a tenth.")] = 5000,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Ask every source for refusals."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with databases(Kind.SQLITE) as (url,), configured(url, more=SOURCES) as environment:
        port = free_port()
        bind = ("--bind", f"127.0.0.1:{port}", "--workers", "1", "--log-level", "warning")
        ready = f"http://127.0.0.1:{port}/health/ready"
        with running("gunicorn", "-c", "python:inbox.gunicorn_settings", *bind, ready=ready, environment=environment):
            for size, number in ((100, rounds), (250_000, max(rounds // 10, 20))):
                body = b'{"x":"%b"}' % (b"x" * (size - 8))
                figures[f"{size} bytes"] = {}
                for name, sample in measured(port, body, number).items():
                    low, high = interval(sample)
                    figures[f"{size} bytes"][name] = {
                        "median_us": round(statistics.median(sample), 1),
                        "low_us": round(low, 1),
                        "high_us": round(high, 1),
                    }
    if as_json:
        print(json.dumps({"figures": figures, **machine()}, indent=2))
        return
    for size_text, by_name in figures.items():
        print(
            f"{size_text}: 401 for an unknown source after {by_name[UNKNOWN]['median_us']} µs, for the others so much more"
        )
        for name, each in by_name.items():
            if name != UNKNOWN:
                print(f"  {name:10} {each['median_us']:+8.1f} µs  ({each['low_us']:+.1f} to {each['high_us']:+.1f})")
    print(" ".join(f"{name}: {value}" for name, value in machine().items()))


if __name__ == "__main__":
    typer.run(main)
