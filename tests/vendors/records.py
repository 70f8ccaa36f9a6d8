"""The reader's own service: records of one kind by plain REST, found by any field and changed by merge patches."""

from __future__ import annotations

from typing import Any

from tests.helpers.scripted import Act, answer
from tests.vendors.service import Asked, VendorService, answer_json

Record = dict[str, Any]


class Records(VendorService):
    """Serves `/KIND?FIELD=VALUE` and `/KIND/ID` for the bearer of `token`."""

    def __init__(self, kind: str, token: str) -> None:
        self.all: dict[str, Record] = {}
        """Records by id."""
        self._kind, self._token = kind, token
        super().__init__()

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") != f"Bearer {self._token}":
            return answer_json(401, {"error": "unknown token"})
        match asked.method, asked.path:
            case "GET", (self._kind,):
                found = [record for record in self.all.values() if _has(record, asked.query)]
                return answer_json(200, {"items": found})
            case "POST", (self._kind,):
                number = f"{self._kind[:1]}{len(self.all) + 1}"
                self.all[number] = {**asked.body, "id": number}
                return answer_json(201, self.all[number])
            case method, (self._kind, number) if number in self.all:
                if method == "DELETE":
                    del self.all[number]
                    return answer(204)
                if method == "PATCH":
                    merged = self.all[number] | asked.body
                    self.all[number] = {name: value for name, value in merged.items() if value is not None}
                return answer_json(200, self.all[number])
        return answer_json(404, {"error": "not found"})


def _has(record: Record, wanted: dict[str, str]) -> bool:
    return all(str(record.get(name)) == value for name, value in wanted.items())
