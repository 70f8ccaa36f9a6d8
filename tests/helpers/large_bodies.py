"""Large signed bodies, hostile in different ways, and the memory of a process that reads them."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import uuid
from collections.abc import Callable

from tests.helpers.receiver import CLOSE, HOST, ask, request

SECRET = "benchmark-secret"


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
    "one string of escapes": lambda size: b'{"id":1,"x":"%b"}' % (b"\\n" * ((size - 16) // 2)),
    "a push of 2,048 commits": commits,
    "lists 60 deep": filled(b"[" * 60 + b"]" * 60 + b","),
    "short lists": filled(b"[],"),
    "short strings": filled(b'"ab",'),
}


def send_large(port: int, body: bytes, media_type: str = "application/json") -> str:
    """POST it, signed as GitHub would. Returns the status."""
    digest = hmac.digest(SECRET.encode(), body, "sha256").hex()
    signed = (f"X-Hub-Signature-256: sha256={digest}", f"X-GitHub-Delivery: {uuid.uuid4()}", "X-GitHub-Event: push")
    fields = (f"Content-Type: {media_type}", *signed, f"Content-Length: {len(body)}")
    line = b"POST /webhooks/github HTTP/1.1"
    return ask(port, request(HOST, CLOSE, *(field.encode() for field in fields), line=line, payload=body), within=60.0)[
        9:12
    ].decode()
