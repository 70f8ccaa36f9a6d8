"""Both services of a sync route behind one scripted server, and the route between them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.outcome import Delivery, Outcome
from relay.destinations import Context
from tests.destinations.scripted import Act, ScriptedServer, answer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DELIVERY = Delivery(
    seq=7, route="user-to-crm", lane="USER|1", attempt=1, run=2, lease_token=1, source="trivore", entity_type="USER",
    entity_id="u1", event_type="UPDATE", action="update", event_id=None, dedup_key="k1", occurred_at=NOW, received_at=NOW,
    content_type="application/json", headers={}, body=b'{"id": "u1"}', traceparent="00-a-b-01",
)  # fmt: skip
SECOND = msgspec.structs.replace(DELIVERY, attempt=2, received_at=NOW - timedelta(seconds=6))
DELETE = msgspec.structs.replace(DELIVERY, event_type="DELETE", action="delete")

USER = {"id": "u1", "name": "Ada", "meta": {"lastModified": "2025-12-31T23:59:58.5Z"}}
FETCH, FIND, CREATE, UPDATE, REMOVE = (
    "GET /api/user/u1", "GET /contacts?externalId=u1", "POST /contacts", "PATCH /contacts/c1", "DELETE /contacts/c1",
)  # fmt: skip
FOUND = answer(200, {"items": [{"id": "c1", "external_id": "u1"}]})
NONE = answer(200, {"items": []})
FETCHED = answer(200, USER)

SYNC = """
    fetch = { api = "identity", path = "/user/{event.entity_id}" }
    find = { path = "/contacts", params = { externalId = "{event.entity_id}" }, pick = "items" }
    create = { path = "/contacts" }
    update = { path = "/contacts/{target.id}" }
    delete = { path = "/contacts/{target.id}" }
    map = { name = "entity.name", phone = "entity.phone", external_id = "event.entity_id" }
    clear_when_absent = ["phone"]
"""


class World:
    """Both services behind one server, and the route between them."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server

    def deliver(
        self,
        delivery: Delivery = DELIVERY,
        acts: dict[str, Act] | None = None,
        *,
        sync: str = SYNC,
        context: Context | None = None,
        timeout: str = "2s",
        **more: Act | list[Act],
    ) -> Outcome:
        defaults: dict[str, Act | list[Act]] = {
            "fetch": FETCHED,
            "find": FOUND,
            "update": answer(),
            "create": answer(201),
            "remove": answer(204),
        }
        names = {"fetch": FETCH, "find": FIND, "update": UPDATE, "create": CREATE, "remove": REMOVE}
        for name, act in {**defaults, **(acts or {}), **more}.items():
            self.server.routes[names[name]] = list(act) if isinstance(act, list) else [act]
        target = destinations.build(self.config(sync, timeout))["user-to-crm"]
        try:
            return target.deliver(delivery, context or Context(lambda: float("inf"), threading.Event(), lambda: NOW))
        finally:
            target.close()

    def config(self, sync: str, timeout: str = "2s") -> Any:  # noqa: ANN401
        common = f'timeout = "{timeout}"\nallow_private = true\nallow_http = true'
        return parse_config(f"""
            [sources.trivore]
            preset = "trivore"
            auth = {{ kind = "none" }}
            [apis.identity]
            base_url = "{self.server.url}/api/"
            auth = {{ kind = "basic", user = "me", password = "pass-word" }}
            {common}
            [destinations.crm]
            kind = "sync"
            base_url = "{self.server.url}"
            auth = {{ kind = "bearer", token = "crm-token" }}
            {common}
            [routes.user-to-crm]
            source = "trivore"
            destination = "crm"
            [routes.user-to-crm.sync]
            {sync}
        """)

    @property
    def asked(self) -> list[str]:
        return [f"{seen.method} {seen.target}" for seen in self.server.seen]


def changed(old: str, new: str) -> str:
    assert old in SYNC
    return SYNC.replace(old, new)
