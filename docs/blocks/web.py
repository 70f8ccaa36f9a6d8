"""The API of the operator's page, from its description."""

from __future__ import annotations

import inspect

from docs.blocks.common import abbreviate, extract_summary, format_table, join_names
from inbox.errors import PageError
from relay.web import openapi
from relay.web.screens import SCREENS


def list_endpoints() -> str:
    """Tabulate the paths of the API with their parameters, except acts."""
    rows = (
        (
            f"`{method.upper()} {path}`",
            operation["responses"][min(operation["responses"])]["description"],
            join_names(f"`{name}`" for name in _find_parameters(operation)),
        )
        for path, operations in openapi.document(SCREENS)["paths"].items()
        if _ACTS not in path
        for method, operation in operations.items()
    )
    return format_table(("request", "answer", "parameters"), rows)


def list_acts() -> str:
    """Tabulate the acts of the API with their fields."""
    paths = openapi.document(SCREENS)["paths"]
    acts = {path.partition(_ACTS)[2]: _find_parameters(paths[path]["get"]) for path in paths if _ACTS in path}
    return format_table(("act", "fields"), ((f"`{name}`", fields) for name, fields in abbreviate(acts).items()))


_ACTS = "/acts/"


def _find_parameters(operation: openapi.Json) -> list[str]:
    return [each["name"] for each in operation["parameters"] if each["in"] == "query"]


def list_problems() -> str:
    """Tabulate the kinds of problems with their remedies."""
    rows = []
    for kind in sorted(PageError.__subclasses__(), key=lambda each: (each.status, each.cause)):
        meaning, _, remedy = (inspect.getdoc(kind) or "").partition("\n\n")
        rows.append((str(kind.status), f"`{kind.cause}`", extract_summary(meaning), " ".join(remedy.split())))
    return format_table(("status", "cause", "meaning", "fix"), rows)
