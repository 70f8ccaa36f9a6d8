"""Calls of a sync route or a listing: a method, templates for the rest, and bodies in the formats of services. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec

from inbox.errors import MappingError, collect_config_errors
from relay.sync.expressions import Scope, encode
from relay.sync.templates import Path, Placeholder, Template, encoded, expanded, templated, templates_in

Format = Literal["merge-patch", "json-patch", "json", "form"]

MEDIA_TYPES: dict[Format, str] = {
    "merge-patch": "application/merge-patch+json",  # RFC 7396
    "json-patch": "application/json-patch+json",  # RFC 6902
    "json": "application/json",
    "form": "application/x-www-form-urlencoded",
}
_NO_PARAMS: Mapping[str, str] = {}


class CallPlan(msgspec.Struct, frozen=True):
    """A compiled call: its method, and the templates of its parts."""

    method: str
    path: Path
    params: tuple[tuple[str, Template], ...] = ()
    body: Any = None
    """JSON whose strings are templates."""
    media_type: str = "application/json"

    @property
    def placeholders(self) -> list[Placeholder]:
        """Every placeholder of its path, query and body."""
        templates = [self.path, *(template for _, template in self.params), *templates_in(self.body)]
        return [placeholder for template in templates for placeholder in template.placeholders]

    def looks_into(self, name: str) -> bool:
        """Return True when one of its templates reads this name from the scope itself."""
        return any(placeholder.looks_into(name) for placeholder in self.placeholders)

    def query(self, scope: Scope) -> str:
        """Encode the query; MappingError when a template has no value."""
        return "&".join(f"{name}={encoded(template.expand(scope), template.where)}" for name, template in self.params)

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
    body: object = None,
    texts: type[Template] = Template,
) -> CallPlan:
    """Compile a call. `known` names the values that templates may use, and `texts` is the kind of template in the body.

    Raises:
        ConfigError: a template is wrong. The text has a line for each.
    """
    parts: dict[str, Callable[[], Any]] = {"path": lambda: Path(path, f"{where}.path", known)}
    parts |= {
        f"params.{name}": partial(Template, text, f"{where}.params.{name}", known) for name, text in params.items()
    }
    parts["body"] = lambda: None if body is None else templated(body, f"{where}.body", known, texts)
    made = collect_config_errors(parts)
    query = tuple((quote(name, safe=""), made[f"params.{name}"]) for name in params)
    return CallPlan(method, made["path"], query, made["body"])


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
