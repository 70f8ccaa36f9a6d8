"""The cost of one large signed body: the worker's memory, and the longest delay of small requests beside it.

Run it with `.venv/bin/python -m benchmarks.large_bodies`. Each kind of body goes to a real worker over a real socket. The memory
is the growth of the worker's peak (`VmHWM`), in multiples of the largest body. The delay is that of small webhooks on another
connection: the longest while the worker is idle otherwise, and the longest while it handles the body.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Self

import typer

from benchmarks.support import TOKEN, Kind, configured, databases, free_port, machine, running

MIB = 1024 * 1024
SECRET = "benchmark-secret"  # of a database that is gone afterwards
GITHUB = f"""
[sources.github]
preset = "github"
secrets = ["{SECRET}"]
"""
BAR_MEMORY, BAR_MILLISECONDS = 4.0, 300.0
FREE_SECONDS = 1.5


def filled(unit: bytes) -> Callable[[int], bytes]:
    """A body whose list `x` repeats `unit`."""
    return lambda size: b'{"id":1,"x":[%b0]}' % (unit * ((size - 20) // len(unit)))


def commits(size: int) -> bytes:
    """A push as GitHub sends it: 2,048 commits, the most that one has, with an emoji, and 30 paths in each."""
    path = "source/of/some/deeply/nested/package/module_with_a_long_name_"
    paths = itertools.count()
    each = min(max((size // 2048 - 700) // (len(path) + 12), 1), 30)
    person = {"name": "Somebody", "email": "somebody@example.com", "username": "somebody"}
    made = [
        {
            "id": hashlib.sha1(b"%d" % n).hexdigest(),  # noqa: S324  # as git names commits
            "message": "Mend the thing \N{SPARKLES}",
            "timestamp": "2026-01-01T00:00:00Z",
            "url": "https://github.com/octo/repo/commit/" + "0" * 40,
            "author": person,
            "committer": person,
            "added": [f"{path}{next(paths)}" for _ in range(each)],
            "distinct": True,
        }
        for n in range(2048)
    ]
    return json.dumps({"ref": "refs/heads/main", "commits": made}, ensure_ascii=False).encode()


BODIES: dict[str, Callable[[int], bytes]] = {
    "one string": lambda size: b'{"id":1,"x":"%b"}' % (b"x" * (size - 16)),
    "one string with an emoji": lambda size: b'{"id":1,"x":"%b\xf0\x9f\x98\x80"}' % (b"x" * (size - 20)),
    "one string with a euro sign": lambda size: b'{"id":1,"x":"%b\xe2\x82\xac"}' % (b"x" * (size - 19)),
    "one string with an escaped emoji": lambda size: b'{"id":1,"x":"%b\\ud83d\\ude00"}' % (b"x" * (size - 28)),
    "one string of escapes": lambda size: b'{"id":1,"x":"%b"}' % (b"\\n" * ((size - 16) // 2)),
    "a push of 2,048 commits": commits,
    "lists 60 deep": filled(b"[" * 60 + b"]" * 60 + b","),
    "short lists": filled(b"[],"),
    "small objects": filled(b'{"a":1},'),
    "short strings": filled(b'"ab",'),
    "one object": lambda size: b'{"id":1%b}' % b"".join(b',"%07d":1' % n for n in range((size - 9) // 12)),
}


class Prober:
    """Sends small webhooks, one after the other, and notes how long each takes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._run = uuid.uuid4().hex[:8]
        self._ended = threading.Event()
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            for n in itertools.count():
                if self._ended.is_set():
                    return
                event = {
                    "id": f"{self._run}-{n}",
                    "entityType": "USER",
                    "eventType": "UPDATE",
                    "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
                sent = posted(
                    "trivore", json.dumps(event).encode(), "Content-Type: application/json", f"X-Webhook-Token: {TOKEN}"
                )
                began = time.perf_counter()
                connection.sendall(sent)
                answer = b""
                while b'"seq"' not in answer:
                    more = connection.recv(65536)
                    if not more:
                        raise SystemExit(f"a small webhook was not stored: {answer!r}")
                    answer += more
                self.seconds.append(time.perf_counter() - began)
                time.sleep(0.002)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def posted(source: str, body: bytes, *fields: str) -> bytes:
    """A request, written out."""
    lines = (f"POST /webhooks/{source} HTTP/1.1", "Host: localhost", *fields)
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def send_large(port: int, body: bytes, media_type: str = "application/json") -> str:
    """POST it, signed as GitHub would. Returns the status line."""
    digest = hmac.digest(SECRET.encode(), body, "sha256").hex()
    sent = posted(
        "github",
        body,
        f"Content-Type: {media_type}",
        f"X-Hub-Signature-256: sha256={digest}",
        "X-GitHub-Event: push",
        f"X-GitHub-Delivery: {uuid.uuid4()}",
        "Connection: close",
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(sent)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer[9:12].decode()


def memory_of(pid: int) -> dict[str, int]:
    """`VmRSS` and `VmHWM` of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split(":") for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


@contextmanager
def worker(environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A receiver with one worker: its port, and the worker's pid."""
    port = free_port()
    ready = f"http://127.0.0.1:{port}/health/ready"
    with tempfile.TemporaryDirectory() as folder:
        pidfile = Path(folder, "gunicorn.pid")
        arguments = (
            "-c",
            "python:inbox.gunicorn_settings",
            "--bind",
            f"127.0.0.1:{port}",
            "--workers",
            "1",
            "--pid",
            str(pidfile),
        )
        with running("gunicorn", *arguments, "--log-level", "warning", ready=ready, environment=environment):
            master = int(pidfile.read_text(encoding="ascii"))
            children = Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii").split()
            yield port, int(children[0])


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.SQLITE,
    size: Annotated[float, typer.Option(help="MiB of each body.")] = 25,
    times: Annotated[int, typer.Option(min=1, help="How often each is sent.")] = 3,
    only: Annotated[str, typer.Option(help="Kinds whose name holds this.")] = "",
) -> None:
    """Send each kind of body; exit status 1 if one takes more memory, or delays others longer, than the bars allow."""
    missed = False
    print(f"{'body':34} {'MiB':>5} status  memory  beside it  alone")
    with databases(database) as (url,), configured(url, more=GITHUB) as environment:
        for name, make in BODIES.items():
            if only not in name:
                continue
            body = make(int(size * MIB))
            with worker(environment) as (port, pid):
                send_large(port, b'{"id":1}')
                with Prober(port) as prober:
                    time.sleep(FREE_SECONDS)
                    alone = max(prober.seconds[5:])
                    began, before = len(prober.seconds), memory_of(pid)["VmRSS"]
                    statuses, peak = set(), 0
                    for _ in range(times):
                        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
                        statuses.add(send_large(port, body))
                        time.sleep(FREE_SECONDS)  # a refused one is stored up to a second later
                        peak = max(peak, memory_of(pid)["VmHWM"])
                    beside = max(prober.seconds[began:], default=0.0)
                factor = (peak - before) / (size * MIB)
            figures = f"{factor:6.1f}x {beside * 1000:7.0f} ms {alone * 1000:4.0f} ms"
            print(f"{name:34} {len(body) / MIB:5.1f} {'/'.join(sorted(statuses)):6} {figures}", flush=True)
            missed |= factor > BAR_MEMORY or beside * 1000 > BAR_MILLISECONDS
    print(" ".join(f"{name}: {value}" for name, value in machine().items()))
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
