"""The largest body that a source may send takes four times its size at most, and keeps no other request waiting."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from sqlalchemy import Engine

from inbox.events.strict_json import LARGEST_TEXT, MOST_MARKS
from inbox.loader.load import parse_config
from inbox.sources import PRESETS
from inbox.sources.fields import LARGEST_FORM_PAYLOAD
from tests.helpers.processes import gunicorn_after, site
from tests.helpers.receiver import Answer, answers, ask, memory_of, post_json, receiving, webhook
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import body as small_body
from tests.helpers.webhooks import config_text, moment

SECRET = "benchmark-secret"
LARGEST = PRESETS["github"].max_body
GITHUB = f'\n[sources.github]\npreset = "github"\nsecrets = ["{SECRET}"]\n'
JSON, FORM = "application/json", "application/x-www-form-urlencoded"


def everything(size: int) -> bytes:
    """As many members as there may be, and for the rest one text."""
    members = b"".join(b',"%07d":%d' % (n, n + 1000) for n in range(MOST_MARKS // 2 - 10))
    return b'{"id":1%b,"x":"%b"}' % (members, b"x" * (size - len(members) - 15))


def wide(size: int) -> bytes:
    """As many members as there may be, and for the rest a text with a character that makes all of them take two bytes."""
    return everything(min(size, LARGEST_TEXT // 2)).replace(b'xxx"', "\N{EURO SIGN}".encode() + b'"')


def plain_form(size: int) -> bytes:
    """A form with as large a payload as there may be, of which nothing is quoted."""
    return b"a=%b&payload=%b" % (b"x" * (size - LARGEST_FORM_PAYLOAD - 11), everything(LARGEST_FORM_PAYLOAD))


def form(size: int) -> bytes:
    """A form of GitHub's."""
    return b"payload=" + quote_plus('{"id": 1, "x": "%s"}' % ("'" * (size // 12))).encode()


def filled(unit: bytes) -> Callable[[int], bytes]:
    """A body whose list `x` repeats `unit`."""
    return lambda size: b'{"id":1,"x":[%b0]}' % (unit * ((size - 20) // len(unit)))


KINDS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "one string": (lambda size: b'{"id":1,"x":"%b"}' % (b"x" * (size - 16)), 200),
    "one string of escapes": (lambda size: b'{"id":1,"x":"%b"}' % (b"\\n" * ((size - 16) // 2)), 200),
    "as many members as there may be": (everything, 200),
    "as many members as there may be, and a euro sign": (wide, 200),
    "a form": (form, 200),
    "a form that is not quoted": (plain_form, 200),
    "an emoji": (lambda size: b'{"id":1,"x":"%b\xf0\x9f\x98\x80"}' % (b"x" * (size - 20)), 422),
    "lists 60 deep": (filled(b"[" * 60 + b"]" * 60 + b","), 422),
    "short lists": (filled(b"[],"), 422),
    "short strings": (filled(b'"ab",'), 422),
}


def signed(kind: str, body: bytes) -> dict[str, str]:
    """The headers of a body of this kind, as GitHub would sign it."""
    return {
        "Content-Type": FORM if kind.startswith("a form") else JSON,
        "X-Hub-Signature-256": f"sha256={hmac.digest(SECRET.encode(), body, 'sha256').hex()}",
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-GitHub-Event": "push",
    }


@contextlib.contextmanager
def held(port: int, sent: bytes) -> Iterator[None]:
    """A connection over which this was sent, and that stays open, unless there was no room for it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        yield


@pytest.mark.long
def test_a_worker_grows_by_four_times_the_largest_body_at_most_whatever_is_in_it(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with site(tmp_path, config_text(database_url) + GITHUB) as place:
        program, port = place.receiver(workers=1)
        (worker,) = program.children()

        def send(kind: str, body: bytes) -> int:
            return post_json(port, "/webhooks/github", body, signed(kind, body))

        assert send("one string", b'{"id":1}') == 200
        before, grown, sizes = memory_of(worker), dict[str, float](), list[int]()
        for kind, (make, status) in KINDS.items():
            body = make(LARGEST)
            assert len(body) <= LARGEST
            Path(f"/proc/{worker}/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
            refused = count(engine, "rejected_request")
            assert send(kind, body) == status, kind
            if status == 200:
                sizes.append(len(body))
            else:  # it is stored a moment later
                until(lambda: count(engine, "rejected_request") > refused, kind)
            grown[kind] = (memory_of(worker, "VmHWM") - before) / LARGEST
        assert max(grown.values()) <= 4, grown
        stored = rows(engine, "SELECT length(body) AS size FROM inbox_payload ORDER BY seq")
        assert [row["size"] for row in stored[1:]] == sizes
        assert program.children() == [worker]


@pytest.mark.parametrize(
    "kind", ["one string", "as many members as there may be", "a form", "an emoji", "lists 60 deep"]
)
async def test_the_event_loop_goes_on_while_a_large_body_is_handled(kind: str, sqlite_database_url: str) -> None:
    """Compare the longest that the process computes between two turns of the loop with the parsing of one string.

    That is time of the processor in this process: what else the machine does is not in it. But on a busy one the loop's
    thread may get its turn late, while the other computes: the best of a few requests counts.
    """
    make, status = KINDS[kind]
    body, one_string = make(LARGEST), KINDS["one string"][0](LARGEST)
    longest, shares = 0.0, list[float]()

    async def turn() -> None:
        nonlocal longest
        longest, last = 0.0, time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    async with receiving(parse_config(config_text(sqlite_database_url) + GITHUB)) as receiver:
        for _ in range(10):
            sent, began = signed(kind, body), time.process_time()
            json.loads(one_string)
            to_parse = time.process_time() - began
            turning = asyncio.create_task(turn())
            answer = await receiver.request("POST", "/webhooks/github", body=body, headers=sent)
            turning.cancel()
            assert answer.status_code == status
            shares.append(longest / to_parse)
            if shares[-1] < 3:
                break
    assert min(shares) < 3, shares


@pytest.mark.long
def test_one_huge_body_leaves_room_for_every_small_one_and_another_huge_one_is_told_to_come_again(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    head = b"POST /webhooks/github HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
    huge = head + b"Content-Length: %d\r\n\r\n" % LARGEST + b"x" * (LARGEST - 1)
    with site(tmp_path, config_text(sqlite_database_url) + GITHUB) as place:
        _, port = place.receiver(1, gunicorn_after(f"from inbox.receiver import app; app.MEMORY = {4 * LARGEST}"))

        def refused() -> Answer | None:
            """Another one beside the first, which is held as long as a body may take."""
            with held(port, huge):
                (answer,) = answers(ask(port, huge + b"x"))
            return answer if answer.status == 503 else None

        told = until(refused, "the first is there before the other", within=90)
        assert told is not None
        assert int(told.headers["retry-after"]) > 0
        with held(port, huge):
            for n in range(20):
                sent = webhook(payload=small_body(f"u{n}", moment(n), more="x" * 60_000))
                assert [answer.status for answer in answers(ask(port, sent))] == [200]
        until(lambda: [each.status for each in answers(ask(port, huge + b"x"))] == [401], "there is room again")
