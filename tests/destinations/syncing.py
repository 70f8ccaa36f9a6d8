"""Both services of a sync route behind one scripted server, and the route between them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.delivery.outcome import Delivery, Outcome
from relay.destinations import Context
from tests.helpers.delivering import DELIVERY, LOCAL, NOW, a_delivery, config_text, deliver
from tests.helpers.scripted import Act, ScriptedServer, answer

SECOND = a_delivery(attempt=2, received_at=NOW - timedelta(seconds=6))
DELETE = a_delivery(event_type="DELETE", action="delete")

USER = {"id": "u1", "name": "Ada", "meta": {"lastModified": "2025-12-31T23:59:58.5Z"}}
FETCH, FIND, CREATE, UPDATE, REMOVE = (
    "GET /api/user/u1", "GET /contacts?externalId=u1", "POST /contacts", "PATCH /contacts/c1", "DELETE /contacts/c1",
)  # fmt: skip
UPDATE_ANOTHER = "PATCH /contacts/c2"
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
        acts: Mapping[str, Act | list[Act]] | None = None,
        *,
        sync: str = SYNC,
        within: Context | None = None,
        timeout: str = "30s",
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
        names["another"] = UPDATE_ANOTHER
        for name, act in {**defaults, **(acts or {}), **more}.items():
            self.server.routes[names[name]] = list(act) if isinstance(act, list) else [act]
        return deliver(self.config(sync, timeout), delivery, within)

    def config(self, sync: str, timeout: str = "30s") -> Config:
        common = f'timeout = "{timeout}"\n{LOCAL}'
        return parse_config(
            config_text(
                "sync",
                f'base_url = "{self.server.url}"\nauth = {{ kind = "bearer", token = "crm-token" }}\n{common}',
                f"""
                [routes.user-to-crm.sync]
                {sync}
                [apis.identity]
                base_url = "{self.server.url}/api/"
                auth = {{ kind = "basic", user = "me", password = "pass-word" }}
                {common}
                """,
            )
        )

    @property
    def asked(self) -> list[str]:
        return self.server.asked


def changed(old: str, new: str) -> str:
    """The table of the route with one thing in it written otherwise."""
    assert old in SYNC
    return SYNC.replace(old, new)
