"""Made-up people, their changes and their groups, for filling a demo."""

from __future__ import annotations

import random
from typing import Any

_GIVEN = (
    "Aino",
    "Bilal",
    "Chiara",
    "Dmitri",
    "Eeva",
    "Farida",
    "Goran",
    "Hanna",
    "Ines",
    "Jussi",
    "Kaisa",
    "Linh",
    "Mikael",
)
_FAMILY = (
    "Aalto",
    "Berg",
    "Costa",
    "Dubois",
    "Eriksson",
    "Fontana",
    "Korhonen",
    "Laine",
    "Mäkinen",
    "Nguyen",
    "Virtanen",
)
_GROUPS = ("Customers", "Season tickets", "Library", "Drivers", "Staff", "Newsletter", "Students", "Partners")
_DOMAINS = ("example.com", "example.org", "example.net")


def sample_user(number: int) -> dict[str, Any]:
    """The user document of made-up person `number`; each number is another username, and the same one every time."""
    given = _GIVEN[number % len(_GIVEN)]
    family = _FAMILY[number // len(_GIVEN) % len(_FAMILY)]
    return {
        "username": f"{_plain(given)}.{_plain(family)}.{number}",
        "nsCode": "demo",
        "name": {"givenName": given, "familyName": family},
        "emails": [{"address": _email(given, family, number, _DOMAINS[0]), "verified": True}],
        "mobiles": [{"number": _mobile(number), "verified": False}],
        "memberOf": [],
    }


def sample_group(number: int) -> dict[str, Any]:
    """The group document of made-up group `number`; each number is another name."""
    name = _GROUPS[number % len(_GROUPS)]
    return {"name": name if number < len(_GROUPS) else f"{name} {number // len(_GROUPS) + 1}", "nsCode": "demo"}


def sample_edit(user: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The user's document after one thing about the person has changed: e-mail, mobile number or family name."""
    name = user["name"]
    change = rng.randrange(3)
    if change == 0:
        address = _email(name["givenName"], name["familyName"], rng.randrange(10_000), rng.choice(_DOMAINS))
        return {**user, "emails": [{"address": address, "verified": True}]}
    if change == 1:
        taken = {mobile["number"] for mobile in user["mobiles"]}
        free = [number for number in map(_mobile, range(1000)) if number not in taken]
        return {**user, "mobiles": [{"number": rng.choice(free), "verified": True}]}
    others = [family for family in _FAMILY if family != name["familyName"]]
    return {**user, "name": {**name, "familyName": rng.choice(others)}}


def _plain(name: str) -> str:
    return name.lower().replace("ä", "a")


def _email(given: str, family: str, number: int, domain: str) -> str:
    return f"{_plain(given)}.{_plain(family)}.{number}@{domain}"


def _mobile(number: int) -> str:
    # Ofcom keeps 07700 900000 to 900999 free of subscribers, for use in drama: nobody's number.
    return f"+447700900{number % 1000:03d}"
