"""Calls of a sync route or a listing: methods, templates, formats of bodies, and errors in responses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import jmespath.parser
import msgspec

from inbox.config.sync import CallKeys
from inbox.errors import ConfigError, MappingError, UnusableResponse, collect_config_errors
from relay.sync.expressions import Expression, Scope, encode
from relay.sync.templates import (
    HeaderTemplate,
    Path,
    Placeholder,
    QueryTemplate,
    Template,
    compile_headers,
    compile_templates,
    encode_value,
    expand_templates,
    templates_in,
)

_MOST_SHOWN = 5
"""Maximum number of errors quoted from a response; further ones are only counted."""


class AnswerRules(msgspec.Struct, frozen=True):
    """The places in a response that report an error."""

    errors: Expression | None = None
    throttled: Expression | None = None
    is_graphql: bool = False
    """True: expect a GraphQL response, an object with `data` or with errors. `errors` may ignore some of the errors."""

    def __bool__(self) -> bool:
        return self.errors is not None or self.throttled is not None


NO_RULES = AnswerRules()


def find_error(rules: AnswerRules, answer: object) -> tuple[Literal["throttled", "rejected"], str] | None:
    """Return the class and text of an error that a response reports; None without one. Null, false and empty mean no error.

    The text comes from the endpoint and may have any length: redact it before storing it.

    Raises:
        UnusableResponse: an expression can't be evaluated on the response, which could hide an error; or the response is not
            the expected GraphQL, and the call may have had no effect.
    """
    throttled = evaluate(rules.throttled, answer)
    errors = evaluate(rules.errors, answer)
    if _is_something(throttled):
        return "throttled", _text(errors if _is_something(errors) else throttled)
    if _is_something(errors):
        return "rejected", _text(errors)
    if rules.is_graphql and not _is_graphql(answer):
        raise UnusableResponse("not a GraphQL response: it has neither data nor errors")
    return None


def _is_graphql(answer: object) -> bool:
    """Return True for a GraphQL response, whose data are null only if there are errors (GraphQL spec §7.1)."""
    return isinstance(answer, dict) and (answer.get("data") is not None or _is_something(answer.get("errors")))


def pick_value(pick: Expression, answer: object) -> object:
    """Return the value of a response at `pick`; None if the response states that the entity does not exist.

    Raises:
        UnusableResponse: the response has neither a value nor such a statement: an explicit null, or a list without the item.
            A response of another shape may be an error, and must not delete a counterpart.
    """
    found = evaluate(pick, answer)
    if found is None and not _says_none(pick.tree, answer):
        raise UnusableResponse(
            f"the response has neither a value at {pick.text} nor null, which would mean that the entity is gone"
        )
    return found


def _says_none(tree: Any, answer: object) -> bool:  # noqa: ANN401  # jmespath's parsed form
    """Return True if the expression's parent value exists, and its last member is null or missing."""
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
        except Exception:  # noqa: BLE001  # see Expression.value
            return False
    return _says_none(last, answer)


def evaluate(expression: Expression | None, answer: Any) -> Any:  # noqa: ANN401  # whatever the JSON holds
    """Evaluate an expression on a response; None without an expression.

    Raises:
        UnusableResponse: the expression can't be evaluated.
    """
    if expression is None:
        return None
    try:
        return expression.value(answer)
    except MappingError:
        raise UnusableResponse(f"{expression.text} can't be evaluated on the response") from None


def _is_something(value: object) -> bool:
    return value not in (None, False, "", [], {})


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return encode(value).decode()
    shown = [_text(each) for each in value[:_MOST_SHOWN]]
    return "; ".join(shown) + (f"; and {len(value) - _MOST_SHOWN} more" if len(value) > _MOST_SHOWN else "")


# --- calls


MEDIA_TYPES = {
    "merge-patch": "application/merge-patch+json",  # RFC 7396
    "json": "application/json",
}
FIELDS = "fields"
"""Placeholder in the body of a create or an update: `"{fields}"` stands for all mapped fields."""


class CallPlan(msgspec.Struct, frozen=True):
    """A compiled call: its method and the templates of its parts."""

    method: str
    path: Path
    params: tuple[tuple[str, Template], ...] = ()
    body: Any = None
    """JSON whose strings are templates."""
    media_type: str = "application/json"
    headers: tuple[tuple[str, HeaderTemplate], ...] = ()
    """Names in Title-Case."""
    rules: AnswerRules = NO_RULES

    @property
    def placeholders(self) -> list[Placeholder]:
        """All placeholders of the path, query and body."""
        templates = [self.path, *(template for _, template in self.params), *templates_in(self.body)]
        return [placeholder for template in templates for placeholder in template.placeholders]

    @property
    def fields_at(self) -> tuple[str, ...]:
        """Keys that lead to the mapped fields in the body; empty if the fields are the whole body or in a list."""
        return _keys_to_fields(self.body) or ()

    def looks_into(self, name: str) -> bool:
        """Return True if one of the call's templates reads this top-level name of the scope."""
        return any(placeholder.looks_into(name) for placeholder in self.placeholders)

    def query(self, scope: Scope) -> str:
        """Encode the query; MappingError if a template has no value."""
        return "&".join(
            f"{name}={encode_value(template.expand(scope), template.where)}" for name, template in self.params
        )

    def own_headers(self, scope: Scope) -> dict[str, str]:
        """Return the configured headers; MappingError if a template has no usable value."""
        return {name: template.expand(scope) for name, template in self.headers}

    def json(self, scope: Scope) -> bytes | None:
        """Encode the body; MappingError if a template has no value."""
        return None if self.body is None else encode(expand_templates(self.body, scope))


def compile_call(
    where: str,
    known: Collection[str],
    call: CallKeys,
    method: str,
    *,
    texts: type[Template] = Template,
    sends_fields: bool = False,
) -> CallPlan:
    """Compile a call.

    Args:
        where: the table, named in errors.
        known: the values that templates may use.
        call: the table.
        method: HTTP method; with `graphql` it is POST.
        texts: class of the templates in the body.
        sends_fields: a body must contain the mapped fields.

    Raises:
        ConfigError: a template is wrong. The text has a line for each.
    """
    in_body = {*known, FIELDS} if sends_fields else known
    parts: dict[str, Callable[[], Any]] = {
        "path": partial(Path, call.path, f"{where}.path", known),
        "params": partial(compile_query, call.query, f"{where}.params", known),
        "headers": partial(compile_headers, call.headers, f"{where}.headers", known),
        "body": partial(compile_templates, call.body, f"{where}.body", in_body, texts),
        "rules": partial(_rules, call, where),
    }
    made = collect_config_errors(parts)
    content = made["body"]
    if call.graphql is not None:  # the document is not a template: its braces are GraphQL's
        if content is not None and "query" in content:
            raise ConfigError(f"{where}.body: has both query and graphql, which is sent as query; remove one")
        method, content = "POST", {"query": call.graphql, **(content or {})}
    if sends_fields and content is not None and not any(each.looks_into(FIELDS) for each in templates_in(content)):
        raise ConfigError(f'{where}.body: sends no mapped field; write "{{{FIELDS}}}" in their place')
    return CallPlan(method, **{**made, "body": content})


def compile_query(
    params: Mapping[str, str], where: str, known: Collection[str]
) -> tuple[tuple[str, QueryTemplate], ...]:
    """Compile the parameters of a query, and percent-encode their names.

    Raises:
        ConfigError: a template is wrong. The text has a line for each.
    """
    made = collect_config_errors(
        {name: partial(QueryTemplate, text, f"{where}.{name}", known) for name, text in params.items()}
    )
    return tuple((quote(name, safe=""), template) for name, template in made.items())


def _rules(keys: CallKeys, where: str) -> AnswerRules:
    is_graphql = keys.graphql is not None
    errors = "errors" if keys.errors is None and is_graphql else keys.errors
    made = collect_config_errors(
        {
            name: partial(Expression, text, f"{where}.{name}", None)
            for name, text in (("errors", errors), ("throttled", keys.throttled))
            if text is not None
        }
    )
    if is_graphql and not made["errors"].looks_into("errors"):  # errors of the whole request count too
        made["errors"] = Expression(f"errors || ({errors})", f"{where}.errors", None)
    return AnswerRules(**made, is_graphql=is_graphql)


def _keys_to_fields(body: object) -> tuple[str, ...] | None:
    if isinstance(body, Template):
        return () if body.looks_into(FIELDS) else None
    if isinstance(body, dict):
        for key, inner in body.items():
            if (keys := _keys_to_fields(inner)) is not None:
                return (key, *keys)
    return None
