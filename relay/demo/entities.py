"""The identity service's users, groups and namespaces, in memory, and the word that goes out when one changes."""

from __future__ import annotations

import copy
import itertools
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from relay.demo.documents import InvalidDocumentError, checked_group, checked_user
from relay.demo.webhooks import Action, Change, rfc3339_milliseconds

API = "/api/rest/v1"
REPLICA_BEHIND = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class EntityType:
    """A type of entity: its name in webhooks and in paths, and what a document of it must be like."""

    name: str
    path: str
    check: Callable[[dict[str, Any]], dict[str, Any]]


USER = EntityType("USER", "user", checked_user)
GROUP = EntityType("GROUP", "group", checked_group)


class UnknownEntityError(LookupError):
    """There is no entity of that type with that id."""


class AlreadyTakenError(ValueError):
    """Another user has that username."""


class Entities:
    """Users and groups. `on_change` is told each change while the lock is held, so in the order the changes were made.

    Every method may be called from any thread; documents that are handed out belong to the caller.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        on_change: Callable[[Change], None],
        namespaces: Iterable[str] = ("demo",),
        *,
        is_slow: Callable[[], bool] = lambda: False,
    ) -> None:
        """An update for which `is_slow` says so is seen late: the first `read` within `REPLICA_BEHIND` gives what was before."""
        self._now, self._on_change, self._is_slow = now, on_change, is_slow
        self.slow = False
        """While it is true, every update is seen late."""
        self._before: dict[str, tuple[datetime, dict[str, Any]]] = {}  # until when the next read gives this
        self._lock = threading.Lock()
        self._documents: dict[EntityType, dict[str, dict[str, Any]]] = {USER: {}, GROUP: {}}
        self._usernames: dict[str, str] = {}  # username to id
        # As MongoDB's ObjectId: 4 bytes of seconds, 5 of the process, 3 of a counter; so ids sort by creation.
        self._process, self._counter = secrets.token_hex(5), itertools.count()
        self._namespaces = [self._namespace(code) for code in namespaces]

    def create(self, entity_type: EntityType, body: dict[str, Any]) -> dict[str, Any]:
        """Stores a new entity and returns its document.

        Raises:
            InvalidDocumentError: the document cannot be stored.
            AlreadyTakenError: the username exists already.
        """
        document = entity_type.check(copy.deepcopy(body))
        with self._lock:
            now = self._now()
            code = document.setdefault("nsCode", self._namespaces[0]["code"])
            if code not in {namespace["code"] for namespace in self._namespaces}:
                raise InvalidDocumentError(f"There is no namespace {code}.")
            document["memberOf"] = self._group_ids(document)
            entity_id = self._new_id(now)
            if entity_type is USER:
                document["username"] = document.get("username") or self._new_username()
                self._claim_username(document["username"], entity_id)
            created = rfc3339_milliseconds(now)
            meta = {"created": created, "lastModified": created, "location": f"{API}/{entity_type.path}/{entity_id}"}
            self._put(entity_type, {"id": entity_id, **document, "meta": meta}, "create", now)
            return copy.deepcopy(self._documents[entity_type][entity_id])

    def replace(self, entity_type: EntityType, entity_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replaces an entity's document and returns the new one; id, namespace and creation time stay.

        Raises:
            UnknownEntityError: there is no such entity.
            InvalidDocumentError: the document cannot be stored.
            AlreadyTakenError: another user has that username.
        """
        document = entity_type.check(copy.deepcopy(body))
        with self._lock:
            now = self._now()
            old = self._old(entity_type, entity_id)
            if document.setdefault("nsCode", old["nsCode"]) != old["nsCode"]:
                raise InvalidDocumentError("nsCode cannot be changed.")
            document["memberOf"] = self._group_ids(document)
            if entity_type is USER:
                document["username"] = document.get("username") or old["username"]
                self._claim_username(document["username"], entity_id)
                if document["username"] != old["username"]:
                    del self._usernames[old["username"]]
            self._put(entity_type, {"id": entity_id, **document, "meta": old["meta"]}, "update", now)
            return copy.deepcopy(self._documents[entity_type][entity_id])

    def delete(self, entity_type: EntityType, entity_id: str) -> None:
        """Removes an entity. Members of a removed group leave it, which changes them too.

        Raises:
            UnknownEntityError: there is no such entity.
        """
        with self._lock:
            now = self._now()
            old = self._old(entity_type, entity_id)
            del self._documents[entity_type][entity_id]
            if entity_type is USER:
                del self._usernames[old["username"]]
            self._on_change(Change(entity_type.name, entity_id, "delete", now))
            for members_type, members in self._documents.items():
                for member in list(members.values()) if entity_type is GROUP else ():
                    if entity_id in member["memberOf"]:
                        left = [group for group in member["memberOf"] if group != entity_id]
                        self._put(members_type, {**member, "memberOf": left}, "update", now)

    def get(self, entity_type: EntityType, entity_id: str) -> dict[str, Any]:
        """An entity's document.

        Raises:
            UnknownEntityError: there is no such entity.
        """
        with self._lock:
            return copy.deepcopy(self._old(entity_type, entity_id))

    def read(self, entity_type: EntityType, entity_id: str) -> dict[str, Any]:
        """As `get`, from a replica, which may be behind.

        Raises:
            UnknownEntityError: there is no such entity.
        """
        with self._lock:
            present = self._old(entity_type, entity_id)
            until, before = self._before.pop(entity_id, (None, present))
            return copy.deepcopy(present if until is None or until <= self._now() else before)

    def all(self, entity_type: EntityType) -> list[dict[str, Any]]:
        """Every document of a type, oldest first; for reading only (stored documents are replaced, never changed)."""
        with self._lock:
            return list(self._documents[entity_type].values())

    def namespaces(self) -> list[dict[str, Any]]:
        """Every namespace; they never change."""
        return self._namespaces

    def _put(self, entity_type: EntityType, document: dict[str, Any], action: Action, now: datetime) -> None:
        # max: the clock may be set back, but a later document is never the older one.
        modified = max(rfc3339_milliseconds(now), document["meta"]["lastModified"])
        document["meta"] = {**document["meta"], "lastModified": modified}
        old = self._documents[entity_type].get(document["id"])
        self._before.pop(document["id"], None)
        if old is not None and (self.slow or self._is_slow()):
            self._before[document["id"]] = (now + REPLICA_BEHIND, old)
        self._documents[entity_type][document["id"]] = document
        self._on_change(Change(entity_type.name, document["id"], action, now))

    def _old(self, entity_type: EntityType, entity_id: str) -> dict[str, Any]:
        try:
            return self._documents[entity_type][entity_id]
        except KeyError:
            raise UnknownEntityError(f"There is no {entity_type.path} {entity_id}.") from None

    def _group_ids(self, document: dict[str, Any]) -> list[str]:
        """`memberOf` as ids; clients may write names (trivoreid 2.0.10, models/user.py)."""
        groups = self._documents[GROUP]
        by_name = {group["name"]: group["id"] for group in groups.values() if group["nsCode"] == document["nsCode"]}
        ids = [value if value in groups else by_name.get(value) for value in document["memberOf"]]
        if None in ids:
            raise InvalidDocumentError(f"There is no group {document['memberOf'][ids.index(None)]}.")
        return [found for found in dict.fromkeys(ids) if found is not None]

    def _claim_username(self, username: str, entity_id: str) -> None:
        if self._usernames.setdefault(username, entity_id) != entity_id:
            raise AlreadyTakenError(f"The username {username} is taken.")

    def _new_username(self) -> str:
        """Eight digits, the vendor's default policy (EIGHT_NUMBERS in trivoreid 2.0.10, models/namespace.py)."""
        while (username := f"{secrets.randbelow(10**8):08d}") in self._usernames:
            pass
        return username

    def _new_id(self, now: datetime) -> str:
        return f"{int(now.timestamp()) & 0xFFFFFFFF:08x}{self._process}{next(self._counter) & 0xFFFFFF:06x}"

    def _namespace(self, code: str) -> dict[str, Any]:
        now = self._now()
        namespace_id, created = self._new_id(now), rfc3339_milliseconds(now)
        meta = {"created": created, "lastModified": created, "location": f"{API}/namespace/{namespace_id}"}
        return {"id": namespace_id, "code": code, "name": code.title(), "shortName": code, "meta": meta}
