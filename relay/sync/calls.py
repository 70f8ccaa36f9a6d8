"""Calls of a sync route or a listing: a method, templates for the rest, and bodies in the formats of services. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec

from inbox.config.calls import CallKeys
from inbox.errors import ConfigError, MappingError, collect_config_errors
from relay.sync.answers import NO_RULES, AnswerRules
from relay.sync.expressions import Expression, Scope, encode
from relay.sync.headers import HeaderTemplate, compile_headers
from relay.sync.templates import (
    Path,
    Placeholder,
    QueryTemplate,
    Template,
    encoded,
    expanded,
    templated,
    templates_in,
)

Format = Literal["merge-patch", "json-patch", "json", "form"]

MEDIA_TYPES: dict[Format, str] = {
    "merge-patch": "application/merge-patch+json",  # RFC 7396
    "json-patch": "application/json-patch+json",  # RFC 6902
    "json": "application/json",
    "form": "application/x-www-form-urlencoded",
}
_NO_PARAMS: Mapping[str, str] = {}
_NO_KEYS = CallKeys()
FIELDS = "fields"
"""Name of the mapped fields in the body of a create or an update: `"{fields}"` stands for all of them."""


class CallPlan(msgspec.Struct, frozen=True):
    """A compiled call: its method, and the templates of its parts."""

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
        """Every placeholder of its path, query and body."""
        templates = [self.path, *(template for _, template in self.params), *templates_in(self.body)]
        return [placeholder for template in templates for placeholder in template.placeholders]

    @property
    def fields_at(self) -> tuple[str, ...]:
        """Keys that lead to the mapped fields in its body; none when they are the body, or in a list."""
        return _keys_to_fields(self.body) or ()

    def line(self, scope: Scope) -> str:
        """Write its method, path and query; raises MappingError where a value is missing."""
        query = self.query(scope)
        return f"{self.method} {self.path.expand(scope)}" + (f"?{query}" if query else "")

    def looks_into(self, name: str) -> bool:
        """Return True when one of its templates reads this name from the scope itself."""
        return any(placeholder.looks_into(name) for placeholder in self.placeholders)

    def query(self, scope: Scope) -> str:
        """Encode the query; MappingError when a template has no value."""
        return "&".join(f"{name}={encoded(template.expand(scope), template.where)}" for name, template in self.params)

    def own_headers(self, scope: Scope) -> dict[str, str]:
        """Return the configured headers; MappingError when a template has no usable value."""
        return {name: template.expand(scope) for name, template in self.headers}

    def json(self, scope: Scope) -> bytes | None:
        """Encode the body; MappingError when a template has no value."""
        return None if self.body is None else encode(expanded(self.body, scope))


def compile_call(
    where: str,
    known: Collection[str],
    *,
    method: str,
    path: str,
    params: Mapping[str, str] = _NO_PARAMS,
    body: Mapping[str, Any] | None = None,
    texts: type[Template] = Template,
    keys: CallKeys = _NO_KEYS,
    sends_fields: bool = False,
) -> CallPlan:
    """Compile a call.

    Args:
        where: the table, named in errors.
        known: the values that templates may use.
        method: of the call; with `graphql` it is POST.
        path: a template.
        params: templates of the query.
        body: JSON whose texts are templates.
        texts: the kind of template in the body.
        keys: headers, a GraphQL document, and rules for the answer.
        sends_fields: the body, if there is one, has the mapped fields.

    Raises:
        ConfigError: a template is wrong. The text has a line for each.
    """
    in_body = {*known, FIELDS} if sends_fields else known
    parts: dict[str, Callable[[], Any]] = {"path": lambda: Path(path, f"{where}.path", known)}
    parts |= {
        f"params.{name}": partial(QueryTemplate, text, f"{where}.params.{name}", known) for name, text in params.items()
    }
    parts["headers"] = lambda: compile_headers(keys.headers, f"{where}.headers", known)
    parts["body"] = lambda: None if body is None else templated(dict(body), f"{where}.body", in_body, texts)
    parts["rules"] = lambda: _rules(keys, where)
    made = collect_config_errors(parts)
    query = tuple((quote(name, safe=""), made[f"params.{name}"]) for name in params)
    content = _with_document(keys.graphql, made["body"], where)
    if sends_fields and content is not None and not _has_fields(content):
        raise ConfigError(f'{where}.body: sends no mapped field; write "{{{FIELDS}}}" where they belong')
    return CallPlan(
        method if keys.graphql is None else "POST",
        made["path"],
        query,
        content,
        headers=made["headers"],
        rules=made["rules"],
    )


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
    if is_graphql and not made["errors"].looks_into("errors"):  # those of the whole request are no less errors
        made["errors"] = Expression(f"errors || ({errors})", f"{where}.errors", None)
    return AnswerRules(**made, is_graphql=is_graphql)


def _with_document(document: str | None, body: Any, where: str) -> Any:  # noqa: ANN401  # compiled JSON
    """Add a GraphQL document to a body. It stays as it is: its braces are no placeholders."""
    if document is None:
        return body
    if isinstance(body, dict) and "query" in body:
        raise ConfigError(f"{where}.body: has a query beside graphql, which is sent as query; remove one")
    return {"query": document, **(body or {})}


def _has_fields(body: object) -> bool:
    return any(template.looks_into(FIELDS) for template in templates_in(body))


def _keys_to_fields(body: object) -> tuple[str, ...] | None:
    if isinstance(body, Template):
        return () if body.looks_into(FIELDS) else None
    if isinstance(body, dict):
        for key, inner in body.items():
            if (keys := _keys_to_fields(inner)) is not None:
                return (key, *keys)
    return None


def patch_body(form: Format, fields: Mapping[str, Any], target: object, where: str) -> bytes | None:
    """Encode a change that gives these fields to the counterpart `target`, as it was found. A null removes the field.

    Returns:
        The body; None when a JSON patch would only remove fields that are not there.

    Raises:
        MappingError: a form can't hold a list or an object.
    """
    if form == "json-patch":
        operations = [*_operations(fields, target if isinstance(target, dict) else {})]
        return encode(operations) if operations else None
    if form == "form":
        return urlencode([(name, _form_text(name, value, where)) for name, value in fields.items()]).encode()
    return encode(dict(fields))


def _operations(fields: Mapping[str, Any], target: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List RFC 6902 operations: `add` replaces a member that is there (§4.1), `remove` fails where there is none (§4.2)."""
    operations: list[dict[str, Any]] = []
    for name, value in fields.items():
        path = "/" + name.replace("~", "~0").replace("/", "~1")  # RFC 6901 §3
        if value is not None:
            operations.append({"op": "add", "path": path, "value": value})
        elif name in target:
            operations.append({"op": "remove", "path": path})
    return operations


def _form_text(name: str, value: object, where: str) -> str:
    if isinstance(value, dict | list):
        raise MappingError("a form holds texts and numbers, no list or object", field=f"{where}.{name}")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
