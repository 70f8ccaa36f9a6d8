"""Secrets that are planted, and the search for them in everything that a person could read afterwards."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping

from sqlalchemy import Engine, inspect
from tests.helpers.tables import rows

ODD = '/+="\\&%<'
"""Characters that JSON, URLs, HTML and base64 each write in another way."""


class Planted:
    """Distinct secrets by name. Each has a core of letters and digits, which every spelling of it but base64 leaves alone."""

    def __init__(self) -> None:
        self.cores: dict[str, str] = {}

    def plain(self, name: str) -> str:
        """A secret of letters and digits."""
        return self.cores.setdefault(name, f"Qz{len(self.cores):02d}{name.title().replace('-', '')}Zq")

    def odd(self, name: str) -> str:
        """A secret with characters that are written in many ways."""
        return self.plain(name) + ODD

    def leaks(self, places: Mapping[str, str]) -> list[tuple[str, str]]:
        """(place, name of the secret) for each that is found in any spelling."""
        return [
            (place, name)
            for place, text in places.items()
            for name, core in self.cores.items()
            if any(spelling in text for spelling in spellings(core))
        ]


def spellings(core: str) -> set[str]:
    """The core itself, its hexadecimal digits, and what base64 makes of it at each of the three offsets it can have."""
    data = core.encode()
    found = {core, data.hex(), data.hex().upper()}
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data).decode()
        found.add(whole[-(-before * 8 // 6) : (before + len(data)) * 8 // 6])
    return found


def all_text(engine: Engine) -> dict[str, str]:
    """All that stands in the database, by table or view; those without any row are left out."""
    looked_at = inspect(engine)
    names = [*looked_at.get_table_names(), *looked_at.get_view_names()]
    found = {name: "\n".join(_values(rows(engine, f'SELECT * FROM "{name}"'))) for name in names}
    return {name: text for name, text in found.items() if text}


def _values(found: Iterable[Mapping[str, object]]) -> Iterator[str]:
    for row in found:
        for value in row.values():
            if isinstance(value, bytes | memoryview):
                yield bytes(value).decode("latin-1")
            elif isinstance(value, dict | list):
                yield json.dumps(value, ensure_ascii=False)
            else:
                yield str(value)
