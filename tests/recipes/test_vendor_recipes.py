"""Recipes whose providers and destinations are vendors: their services are those of tests/vendors, which vendors' clients prove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.recipes.walking import walking
from tests.vendors import trivore_api
from tests.vendors.records import Records
from tests.vendors.trivore_api import Trivore

OWN_TOKEN = "own-token"


def test_users_of_trivore_have_contacts(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Trivore()) as trivore, closing(Records("contacts", OWN_TOKEN)) as crm:
        trivore.user("IDNUMBER1234", "2026-11-02T09:00:01.000Z", "Aino", "Aalto", "aino@example.com")
        trivore.user("IDNUMBER1235", "2026-11-02T09:00:02.000Z", "Eino", "Leino", "eino@example.com")
        services = {"https://id.example.com": trivore, "https://crm.example.com": crm}
        secrets = {"TRIVORE_CLIENT": trivore_api.CLIENT, "TRIVORE_SECRET": trivore_api.SECRET, "CRM_TOKEN": OWN_TOKEN}
        with walking(
            "trivore-to-contacts", tmp_path, sqlite_database_url, services, WEBHOOK_TOKEN="a-token", **secrets
        ) as walk:
            walk.follow()
        assert sorted(contact["last_name"] for contact in crm.all.values()) == ["Aalto", "Leino"]
