"""Each query of docs/reference/dba.md gives on both databases the answer of the page."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from inbox.db.dialect import POSTGRES, SQLITE
from tests.docs import cookbook
from tests.helpers.worlds import happen


def test_every_query_gives_the_answer_of_the_page(engine: Engine) -> None:
    night = happen(engine)
    wrong = []
    for question in cookbook.questions(engine.dialect.name):
        night.beat()
        with engine.begin() as connection:
            given = cookbook.answer(connection, question.statement)
        if given is None:
            night.operate()
        if given != question.answer:
            wrong.append(f"{cookbook.PAGE}:{question.line} {question.text}\n{given}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dialect", [POSTGRES, SQLITE])
def test_each_query_answers_a_question(dialect: str) -> None:
    asked = cookbook.questions(dialect)
    assert len(asked) >= 40
    assert [question.line for question in asked if "?" not in question.text] == []
    assert len({question.text for question in asked}) == len(asked)
