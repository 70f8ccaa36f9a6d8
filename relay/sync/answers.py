"""Answers with the status 200 that report an error, such as GraphQL's, and the entity inside an answer. Pure."""

from __future__ import annotations

from typing import Any, Literal

import jmespath.parser
import msgspec

from inbox.errors import MappingError, UnusableAnswer
from relay.sync.expressions import Expression, encode

_MOST_SHOWN = 5
"""Errors of an answer that are quoted; the others are counted."""


class AnswerRules(msgspec.Struct, frozen=True):
    """The places in an answer that report an error."""

    errors: Expression | None = None
    throttled: Expression | None = None
    is_graphql: bool = False
    """A response of GraphQL is expected: an object with `data`, or with errors that `errors` may let pass."""

    def __bool__(self) -> bool:
        return self.errors is not None or self.throttled is not None


NO_RULES = AnswerRules()


class ReportedError(msgspec.Struct, frozen=True):
    """An error that an answer reports."""

    error_class: Literal["throttled", "rejected"]
    text: str
    """Text of the other side, of any length: redact it before it is stored."""


def reported_error(rules: AnswerRules, answer: object) -> ReportedError | None:
    """Return the error that an answer reports; None without one. A null, false or empty value is no error.

    Raises:
        UnusableAnswer: an expression can't be evaluated on the answer, so that an error could go unseen; or GraphQL is
            expected, and the answer is none, so that perhaps nothing was done.
    """
    throttled = _evaluated(rules.throttled, answer)
    errors = _evaluated(rules.errors, answer)
    if _is_something(throttled):
        return ReportedError("throttled", _text(errors if _is_something(errors) else throttled))
    if _is_something(errors):
        return ReportedError("rejected", _text(errors))
    if rules.is_graphql and not _is_graphql(answer):
        raise UnusableAnswer("the answer is no response of GraphQL: it has neither data nor errors")
    return None


def _is_graphql(answer: object) -> bool:
    """Return True for a response: its data are null only beside errors (GraphQL spec §7.1)."""
    return isinstance(answer, dict) and (answer.get("data") is not None or _is_something(answer.get("errors")))


def picked(pick: Expression, answer: object) -> object:
    """Return what an answer has at `pick`; None when it says that there is nothing.

    Raises:
        UnusableAnswer: it doesn't say so. Only an explicit null, or a list without the item, does: an answer of another
            shape is perhaps an error, and must not delete a counterpart.
    """
    found = _evaluated(pick, answer)
    if found is None and not _says_none(pick.tree, answer):
        raise UnusableAnswer(
            f"the answer has nothing at {pick.text}, and no null there either, which would mean that the entity is gone"
        )
    return found


def _says_none(tree: Any, answer: object) -> bool:  # noqa: ANN401  # jmespath's parsed form
    """Return True when the value around the last step of an expression is there, and its member is null or missing."""
    if tree["type"] == "field":
        return isinstance(answer, dict) and tree["value"] in answer
    if tree["type"] == "index":
        return isinstance(answer, list)
    if tree["type"] not in {"subexpression", "index_expression", "pipe"}:
        return False
    *before, last = tree["children"]
    for step in before:
        try:
            answer = jmespath.parser.ParsedResult("", step).search(answer)
        except Exception:  # noqa: BLE001  # as in Expression.value
            return False
    return _says_none(last, answer)


def _evaluated(expression: Expression | None, answer: Any) -> Any:  # noqa: ANN401  # whatever the JSON holds
    try:
        return None if expression is None else expression.value(answer)
    except MappingError:
        text = "" if expression is None else expression.text
        raise UnusableAnswer(f"{text} can't be evaluated on the answer") from None


def _is_something(value: object) -> bool:
    return value not in (None, False, "", [], {})


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return encode(value).decode()
    shown = [_text(each) for each in value[:_MOST_SHOWN]]
    return "; ".join(shown) + (f"; and {len(value) - _MOST_SHOWN} more" if len(value) > _MOST_SHOWN else "")
