"""A downstream service that fails, and tells all that it knows of its caller's secrets, in every spelling there is."""

from __future__ import annotations

import base64
import contextlib
import html
import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

import msgspec

from tests.helpers.scripted import Act, ScriptedServer, Seen, raw, then_close

HEADERS = ("authorization", "proxy-authorization", "x-api-key")
FIRST, LAST = "the-echo-begins", "the-echo-ends"
"""Words that each echo begins and ends with; they are no secret."""


class Reply(msgspec.Struct, frozen=True):
    """Answer to calls below a path."""

    status: int = 500
    knows: tuple[str, ...] = ()
    """Secrets that it tells besides those which the call shows it."""
    password: str = ""
    """Password that it reveals under keys that say that it is one."""
    body: str | None = None
    """Instead of the echo."""
    retry_after: str | None = None
    broken_head: bool = False
    """One line of the head has no colon."""


def spelled(secret: str) -> list[str]:
    """The secret in every spelling that an echo may have it in."""
    in_json = json.dumps(secret)[1:-1]
    data = secret.encode()
    return [
        secret,
        in_json,
        in_json.replace("/", "\\/"),
        json.dumps(in_json)[1:-1],
        quote(secret),
        quote_plus(secret),
        quote(quote(secret, safe=""), safe=""),
        html.escape(secret),
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        base64.b64encode(b"user:" + data).decode(),
    ]


class Echo(ScriptedServer):
    """Answers each path by the reply of the longest prefix it has. `calls` counts them by prefix."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self.calls: dict[str, int] = dict.fromkeys(replies, 0)
        self._replies = replies
        super().__init__()

    def act_for(self, seen: Seen) -> Act:
        """Answer with all that the call has shown."""
        path = urlsplit(seen.target).path
        prefix = max((known for known in self._replies if path.startswith(known)), key=len)
        self.calls[prefix] += 1
        reply = self._replies[prefix]
        shown = [seen.headers[name] for name in HEADERS if name in seen.headers]
        body = self._echo(seen.target, reply, [*shown, *reply.knows]) if reply.body is None else reply.body
        head = [f"HTTP/1.1 {reply.status} Whatever", f"Content-Length: {len(body.encode())}", "Connection: close"]
        if reply.retry_after is not None:
            head.append(f"Retry-After: {reply.retry_after}")
        if reply.broken_head:
            head.append("this line has no colon")
        return then_close(raw("\r\n".join([*head, "", body]).encode()))

    def _echo(self, target: str, reply: Reply, secrets: list[str]) -> str:
        shown = [target, unquote(target), *(text for secret in secrets for text in spelled(secret))]
        told = json.dumps({"you_sent": secrets, "password": reply.password, "more": {"clientSecret": reply.password}})
        return "\n".join([FIRST, told, *shown, LAST])


@contextlib.contextmanager
def echoing(replies: Mapping[str, Reply]) -> Iterator[Echo]:
    """The service as long as the block runs."""
    with contextlib.closing(Echo(replies)) as made:
        yield made
