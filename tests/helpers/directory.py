"""A source that lists its entities by the time of their last change, a page at a time, as SCIM does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.scripted import ScriptedServer, answer

TABLE = """
[apis.identity]
base_url = "{url}"
allow_private = true
allow_http = true
timeout = "60s"
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
event_type = "UPDATE"
params = {{ since = "{{since}}", start = "{{start}}", count = "{{count}}" }}
pages = {{ by = "start", count = {count} }}
"""


class Directory:
    """An act of a `ScriptedServer`. Entities and their times may be changed between two pages."""

    def __init__(self, users: dict[str, str] | None = None) -> None:
        self.users = users or {}
        self.statuses: list[int] = []
        """Statuses that the next pages are answered with; 200 after these."""
        self.let_go = threading.Event()
        """Pages are held until it is set."""
        self.let_go.set()
        self.before_page: Callable[[int], None] = lambda _: None
        """Called with the number of the page, from 1, before it is made."""
        self.pages = 0
        self.headers: list[dict[str, str]] = []
        """Further headers of the next pages; none after these."""
        self.more: dict[str, Any] = {}
        """Further members of an item, by the id of its entity. A value that is no dict is in place of the item."""

    def __call__(self, server: ScriptedServer, connection: socket.socket) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(server.seen[-1].target).query).items()}
        self.pages += 1
        while not self.let_go.wait(0.05) and not server.closing.is_set():
            pass
        self.before_page(self.pages)
        since, start = asked["since"], int(asked["start"])
        changed = sorted((modified, entity) for entity, modified in self.users.items() if modified >= since)
        page = [self._item(entity, modified) for modified, entity in changed[start : start + int(asked["count"])]]
        status = self.statuses.pop(0) if self.statuses else 200
        headers = self.headers.pop(0) if self.headers else {}
        answer(status, {"resources": page}, **headers)(server, connection)

    def _item(self, entity: str, modified: str) -> Any:  # noqa: ANN401  # any JSON
        more = self.more.get(entity, {})
        return {"id": entity, "meta": {"lastModified": modified}, **more} if isinstance(more, dict) else more
