"""The commercial service's contacts and teams, in memory, with the history of what was applied to each."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

Change = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True)
class RecordType:
    """A type of record: its name in paths and the fields that a client may set, all of them text."""

    path: str
    fields: tuple[str, ...]


CONTACT = RecordType("contacts", ("external_id", "email", "first_name", "last_name", "phone"))
TEAM = RecordType("teams", ("external_id", "name"))


@dataclass(frozen=True, slots=True)
class Applied:
    """One change that was applied to a record: what was asked for, and the record afterwards (None: it is gone)."""

    change: Change
    record_id: str
    body: dict[str, Any] | None
    record: dict[str, Any] | None
    idempotency_key: str | None


class UnknownRecordError(LookupError):
    """There is no such record."""


class InvalidRecordError(ValueError):
    """The record would have a field it cannot have; the message says which."""


class DuplicateError(ValueError):
    """Another record has that external id."""


class Records:
    """The records of one type, for any number of threads; records that are handed out belong to the caller."""

    def __init__(self, record_type: RecordType) -> None:
        self._type = record_type
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        self._by_external_id: dict[str, str] = {}
        self._history: dict[str, list[Applied]] = {}
        self._last_number = 0

    def create(self, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """Adds a record and returns it.

        Raises:
            InvalidRecordError: an unknown field, or one that is not text.
            DuplicateError: the external id exists already.
        """
        given = self._checked({field: value for field, value in body.items() if value is not None})
        with self._lock:
            self._refuse_duplicate(given, None)
            self._last_number += 1
            record_id = f"{self._type.path[:-1]}-{self._last_number}"
            record = {"id": record_id, **dict.fromkeys(self._type.fields), **given}
            self._keep(record)
            self._note(Applied("create", record_id, body, record, key), record)
            return dict(record)

    def patch(self, record_id: str, patch: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """Applies a JSON merge patch (RFC 7396) and returns the record.

        Raises:
            UnknownRecordError: there is no such record.
            InvalidRecordError: an unknown field, one that is not text, or another id.
            DuplicateError: another record has that external id.
        """
        with self._lock:
            old = self._old(record_id)
            merged = merge_patch(old, patch)
            if merged.pop("id", None) != record_id:
                raise InvalidRecordError("id cannot be changed")
            given = self._checked({field: value for field, value in merged.items() if value is not None})
            self._refuse_duplicate(given, record_id)
            record = {"id": record_id, **dict.fromkeys(self._type.fields), **given}
            self._by_external_id.pop(old["external_id"] or "", None)
            self._keep(record)
            self._note(Applied("update", record_id, patch, record, key), record)
            return dict(record)

    def delete(self, record_id: str, key: str | None = None) -> None:
        """Removes a record.

        Raises:
            UnknownRecordError: there is no such record.
        """
        with self._lock:
            old = self._old(record_id)
            del self._records[record_id]
            self._by_external_id.pop(old["external_id"] or "", None)
            self._note(Applied("delete", record_id, None, None, key), old)

    def get(self, record_id: str) -> dict[str, Any]:
        """A record.

        Raises:
            UnknownRecordError: there is no such record.
        """
        with self._lock:
            return dict(self._old(record_id))

    def find(self, external_id: str) -> list[dict[str, Any]]:
        """The record with that external id, or nothing."""
        with self._lock:
            record_id = self._by_external_id.get(external_id)
            return [dict(self._records[record_id])] if record_id is not None else []

    def all(self) -> list[dict[str, Any]]:
        """Every record, oldest first."""
        with self._lock:
            return [dict(record) for record in self._records.values()]

    def history(self, external_id: str) -> list[Applied]:
        """What was applied to records with that external id, in order; it outlives the record."""
        with self._lock:
            return list(self._history.get(external_id, ()))

    def _checked(self, given: dict[str, Any]) -> dict[str, str]:
        for field, value in given.items():
            if field not in self._type.fields:
                raise InvalidRecordError(f"{field} is not a field of {self._type.path}")
            if not isinstance(value, str):
                raise InvalidRecordError(f"{field} must be text")
        return given

    def _refuse_duplicate(self, given: dict[str, str], record_id: str | None) -> None:
        external_id = given.get("external_id")
        if external_id == "":
            raise InvalidRecordError("external_id must not be empty")
        if external_id is not None and self._by_external_id.get(external_id, record_id) != record_id:
            raise DuplicateError(f"external_id {external_id} exists already")

    def _old(self, record_id: str) -> dict[str, Any]:
        try:
            return self._records[record_id]
        except KeyError:
            raise UnknownRecordError(f"there is no {record_id} in {self._type.path}") from None

    def _keep(self, record: dict[str, Any]) -> None:
        self._records[record["id"]] = record
        if record["external_id"] is not None:
            self._by_external_id[record["external_id"]] = record["id"]

    def _note(self, applied: Applied, record: dict[str, Any]) -> None:
        self._history.setdefault(record["external_id"] or record["id"], []).append(applied)


def merge_patch(target: object, patch: object) -> Any:  # noqa: ANN401 - any JSON value, RFC 7396
    """The target after a JSON merge patch: null removes a member, an object merges, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged
