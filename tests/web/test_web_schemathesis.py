"""Requests of every kind against the running API: no bug, no answer outside its description, and wrong input is refused."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from relay.web import openapi
from relay.web.screens import SCREENS
from tests.helpers.page import TOKEN, Entrance, entrance, on_database
from tests.helpers.relaying import CONFIG, Steps
from tests.helpers.worlds import fill_page


def closed(schema: Any) -> Any:  # noqa: ANN401  # any JSON
    """The same description, where an object has no members but those that are described."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(inner) for name, inner in schema.items()}
    if "properties" in made and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


NAMES = {"source": list(CONFIG.sources), "route": list(CONFIG.routes), "destination": list(CONFIG.destinations)}
"""A filter by a name that neither the configuration nor the database has is refused, and no description can tell."""


def document() -> Any:  # noqa: ANN401  # any JSON
    """The description of the page of `CONFIG`."""
    made = closed(openapi.document(SCREENS))
    for operations in made["paths"].values():
        for parameter in (each for operation in operations.values() for each in operation["parameters"]):
            if parameter["name"] in NAMES:
                parameter["schema"]["enum"] = NAMES[parameter["name"]]
            if parameter["in"] == "query" and "enum" in parameter["schema"]:  # an empty one counts as absent
                parameter["schema"]["enum"] = [*parameter["schema"]["enum"], ""]
    return made


DOCUMENT = document()
EXAMPLES = 6
"""Requests to each operation in the short run."""


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
"""Not those that compare acceptance with the description: no schema says which names, plans and pairs of filters there are."""


def is_of_the_server(response: schemathesis.Response) -> bool:
    """Tell whether uvicorn's parser has answered: the page never saw such a request, and can't describe the answer."""
    return response.status_code == HTTPStatus.BAD_REQUEST and response.content == b"Invalid HTTP request received."


@pytest.fixture
def running(steps: Steps, database_url: str, tmp_path: Path) -> Iterator[Entrance]:
    """The page with its real access, on a database that has rows of every kind."""
    fill_page(steps)
    with entrance(on_database(CONFIG, database_url), tmp_path) as made:
        yield made


@pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(2 * EXAMPLES, marks=pytest.mark.long)])
def test_an_answer_is_as_described_whatever_is_asked(running: Entrance, examples: int) -> None:
    api = schemathesis.openapi.from_dict(DOCUMENT)
    operations = [found.ok() for found in api.get_all_operations()]  # type: ignore[union-attr]  # the document is valid
    assert len(operations) == sum(len(path) for path in DOCUMENT["paths"].values())
    for operation in operations:
        right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=st.one_of(right, wrong))
        def ask(case: schemathesis.Case[Any]) -> None:
            response = case.call(
                base_url=running.url, session=running.browser, headers={"Authorization": f"Bearer {TOKEN}"}
            )
            if not is_of_the_server(response):
                case.validate_response(response, checks=CHECKS)

        ask()
