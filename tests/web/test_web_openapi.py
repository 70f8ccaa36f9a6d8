"""The OpenAPI document of the page is valid and complete, and the running API conforms to it."""

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
from sqlalchemy import Engine, text

from relay.web import openapi
from relay.web.query import encode
from relay.web.screens import SCREENS
from tests.helpers.databases import ON_BOTH
from tests.helpers.page import TOKEN, Entrance, Page, entrance, on_database
from tests.helpers.relaying import CONFIG, Steps
from tests.helpers.worlds import fill_page

DOCUMENT = openapi.document(SCREENS)


def members(schema: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each schema within a schema, with its path."""
    if isinstance(schema, dict):
        yield path, schema
        for name, inner in schema.items():
            yield from members(inner, f"{path}/{name}")
    elif isinstance(schema, list):
        for number, inner in enumerate(schema):
            yield from members(inner, f"{path}/{number}")


def test_the_document_is_valid_has_every_screen_and_is_served(page: Page) -> None:
    from openapi_spec_validator import validate  # noqa: PLC0415  # importing it takes a second in each process of `make test`

    validate(DOCUMENT)
    assert len(DOCUMENT["paths"]) >= len(SCREENS)
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)
    assert page.json("/api/v1/openapi.json") == DOCUMENT
    assert page.get("/api/v1/openapi.json", None).status_code == 401
    assert '<a href="/api/v1/openapi.json">' in page.get("/rejected").text


def test_every_parameter_is_bounded() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for parameter in (each for operation in operations.values() for each in operation["parameters"]):
            where, schema = f"{path} {parameter['name']}", parameter["schema"]
            if schema["type"] == "array":
                assert schema.keys() >= {"minItems", "maxItems"}, where
                schema = schema["items"]
            assert schema.get("type") in {"string", "integer", "boolean"}, where
            if schema["type"] == "string":
                assert schema.keys() & {"maxLength", "enum", "anyOf", "pattern"}, where
            if schema["type"] == "integer":
                assert schema.keys() >= {"minimum", "maximum"}, where


def test_a_parameter_is_required_where_a_screen_or_an_act_needs_it() -> None:
    needed = {
        path: [each["name"] for each in DOCUMENT["paths"][f"/api/v1/{path}"]["get"]["parameters"] if each["required"]]
        for path in ("entity", "events/{seq}", "rejected", "acts/erase", "acts/replay")
    }
    assert needed == {
        "entity": ["source", "type", "id"],
        "events/{seq}": ["seq"],
        "rejected": [],
        "acts/erase": ["source", "entity_type", "entity_id"],
        "acts/replay": [],
    }


def test_every_response_is_described_to_its_last_member() -> None:
    """Rows need a description: name their relation by `rows_of`, or make them a struct."""
    bare = [
        f"{place} {schema}"
        for place, schema in members(DOCUMENT["components"]["schemas"], "schemas")
        if schema.get("type") == "object" and not schema.keys() & {"properties", "additionalProperties"}
    ]
    assert not bare, "\n".join(bare)


@ON_BOTH
def test_sums_are_numbers_on_both_databases(engine: Engine) -> None:
    """Postgres returns sums as numeric, which must not become strings in JSON."""
    with engine.connect() as connection:
        row = (
            connection.execute(text("SELECT sum(n) AS n FROM (SELECT 1 AS n UNION ALL SELECT 2) AS s")).mappings().one()
        )
    assert encode(dict(row)) == b'{"n":3}'


# --- Generated requests: no error of the server, and no response outside the document


def close(schema: Any) -> Any:  # noqa: ANN401  # any JSON
    """Return the schema without additional properties in its objects."""
    if isinstance(schema, list):
        return [close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: close(inner) for name, inner in schema.items()}
    if "properties" in made and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


NAMES = {"source": list(CONFIG.sources), "route": list(CONFIG.routes), "destination": list(CONFIG.destinations)}
"""Names that filters may have; others are refused, which no schema can express."""


def document() -> Any:  # noqa: ANN401  # any JSON
    """Return the document for the page of `CONFIG`."""
    made = close(openapi.document(SCREENS))
    for operations in made["paths"].values():
        for parameter in (each for operation in operations.values() for each in operation["parameters"]):
            if parameter["name"] in NAMES:
                parameter["schema"]["enum"] = NAMES[parameter["name"]]
            if parameter["in"] == "query" and "enum" in parameter["schema"]:  # an empty one is absent
                parameter["schema"]["enum"] = [*parameter["schema"]["enum"], ""]
    return made


SERVED_DOCUMENT = document()
EXAMPLES = 3
"""Requests to each operation in the usual run."""


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
"""Checks of responses; which names, plans and pairs of filters are accepted, no schema can express."""


def is_from_parser(response: schemathesis.Response) -> bool:
    """Return whether uvicorn's parser refused the request, which the page never saw."""
    return response.status_code == HTTPStatus.BAD_REQUEST and response.content == b"Invalid HTTP request received."


@pytest.fixture
def running(steps: Steps, database_url: str, tmp_path: Path) -> Iterator[Entrance]:
    """The page with its real access, on a database with rows of every kind."""
    fill_page(steps)
    with entrance(on_database(CONFIG, database_url), tmp_path) as made:
        yield made


@pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(4 * EXAMPLES, marks=pytest.mark.long)])
def test_every_response_conforms_to_the_document(running: Entrance, examples: int) -> None:
    api = schemathesis.openapi.from_dict(SERVED_DOCUMENT)
    operations = [found.ok() for found in api.get_all_operations()]  # type: ignore[union-attr]  # the document is valid
    assert len(operations) == sum(len(path) for path in SERVED_DOCUMENT["paths"].values())
    for operation in operations:
        right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=st.one_of(right, wrong))
        def ask(case: schemathesis.Case[Any]) -> None:
            response = case.call(
                base_url=running.url, session=running.browser, headers={"Authorization": f"Bearer {TOKEN}"}
            )
            if not is_from_parser(response):
                case.validate_response(response, checks=CHECKS)

        ask()
