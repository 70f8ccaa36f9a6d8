"""Requests of every kind against the running API: no bug, no answer outside its description, and wrong input is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from inbox.config.model import Config
from relay.web import openapi
from relay.web.screens import SCREENS
from tests.helpers.page import Page


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


DOCUMENT = closed(openapi.document(SCREENS, "1"))
API = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [operation.ok() for operation in API.get_all_operations()]


def test_it_has_all_operations() -> None:
    assert len(OPERATIONS) == sum(len(path) for path in DOCUMENT["paths"].values())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_an_answer_is_as_described_whatever_is_asked(page: Page, operation: Any) -> None:
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(right, wrong))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=page.url, session=page._session, headers={"X-Test-Actor": "operator olga"})

    ask()
