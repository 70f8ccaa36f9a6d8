"""What a user or group document may look like: what clients send, checked, and nothing a client could trip over."""

from __future__ import annotations

from typing import Any


class InvalidDocumentError(ValueError):
    """The document cannot be stored; the message says why."""


def checked_user(body: dict[str, Any]) -> dict[str, Any]:
    """The user in the form it is stored, without what only the service sets.

    Null members are left out: the vendor's client (trivoreid 2.0.10, models/user.py) iterates over `emails`, `mobiles`
    and the like without asking whether they are null. The password is never kept.

    Raises:
        InvalidDocumentError: a field has the wrong type.
    """
    user = _without_nulls(body, "password")
    _check_text(user, "username", "nsCode")
    if not isinstance(user.setdefault("name", {}), dict):
        raise InvalidDocumentError("name must be an object.")
    _check_text(user["name"], "givenName", "middleName", "familyName")
    user["emails"] = _addresses(user, "emails", "address")
    user["mobiles"] = _addresses(user, "mobiles", "number")
    user["memberOf"] = _texts(user, "memberOf")
    return user


def checked_group(body: dict[str, Any]) -> dict[str, Any]:
    """The group in the form it is stored, without what only the service sets.

    Raises:
        InvalidDocumentError: a field has the wrong type, or there is no name.
    """
    group = _without_nulls(body)
    _check_text(group, "name", "description", "nsCode")
    if not group.get("name"):
        raise InvalidDocumentError("name must not be empty.")
    group["memberOf"] = _texts(group, "memberOf")
    return group


def _without_nulls(body: dict[str, Any], *dropped: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None and key not in {"id", "meta", *dropped}}


def _check_text(holder: dict[str, Any], *fields: str) -> None:
    for field in fields:
        if not isinstance(holder.get(field), str | None):
            raise InvalidDocumentError(f"{field} must be a string.")


def _texts(document: dict[str, Any], field: str) -> list[str]:
    values = document.get(field, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidDocumentError(f"{field} must be a list of strings.")
    return values


def _addresses(user: dict[str, Any], field: str, key: str) -> list[dict[str, Any]]:
    """The user's e-mail addresses or mobile numbers; a plain string is one that is not verified."""
    values = user.get(field, [])
    if not isinstance(values, list):
        raise InvalidDocumentError(f"{field} must be a list.")
    return [_address(value, field, key) for value in values]


def _address(value: object, field: str, key: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {key: value, "verified": False}
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise InvalidDocumentError(f"Each of {field} must have a string {key}.")
    if not isinstance(value.get("verified"), bool | None):
        raise InvalidDocumentError(f"verified in {field} must be true or false.")
    return {**value, "verified": bool(value.get("verified"))}
