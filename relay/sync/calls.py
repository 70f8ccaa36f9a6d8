"""The calls of a sync route and of a listing: a method, and templates for everything else. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from inbox.errors import collect_config_errors
from relay.sync.expressions import Scope, encode
from relay.sync.templates import Path, Placeholder, Template, encoded, expanded, templated, templates_in

_NO_PARAMS: Mapping[str, str] = {}


class CallPlan(msgspec.Struct, frozen=True):
    """A call of the plan: its method, and the templates of its parts."""

    method: str
    path: Path
    params: tuple[tuple[str, Template], ...] = ()
    body: Any = None
    """JSON whose strings are templates."""
    media_type: str = "application/json"

    @property
    def placeholders(self) -> list[Placeholder]:
        """All of its path, query and body."""
        templates = [self.path, *(template for _, template in self.params), *templates_in(self.body)]
        return [placeholder for template in templates for placeholder in template.placeholders]

    def query(self, scope: Scope) -> str:
        """The query, encoded; MappingError when a template has no value."""
        return "&".join(f"{name}={encoded(template.expand(scope), template.where)}" for name, template in self.params)

    def json(self, scope: Scope) -> bytes | None:
        """The body, encoded; MappingError when a template has no value."""
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
    """A call, its templates compiled; `known` names what they may look into, and `texts` is the kind of those in the body.

    Raises:
        ConfigError: one of them is wrong. The text has a line for each.
    """
    parts: dict[str, Callable[[], Any]] = {"path": lambda: Path(path, f"{where}.path", known)}
    parts |= {
        f"params.{name}": partial(Template, text, f"{where}.params.{name}", known) for name, text in params.items()
    }
    parts["body"] = lambda: None if body is None else templated(body, f"{where}.body", known, texts)
    made = collect_config_errors(parts)
    query = tuple((quote(name, safe=""), made[f"params.{name}"]) for name in params)
    return CallPlan(method, made["path"], query, made["body"])
