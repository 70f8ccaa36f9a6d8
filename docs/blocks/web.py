"""The API of the operator's page, from its description."""

from __future__ import annotations

import inspect

from docs.blocks.common import first_line, table
from inbox.errors import PageError
from relay.web import openapi
from relay.web.screens import SCREENS


def api_endpoints() -> str:
    """Every path of the API with its parameters; those in the path, and the ones of every list, are left out."""
    rows = []
    for path, operations in openapi.document(SCREENS)["paths"].items():
        for method, operation in operations.items():
            names = [each["name"] for each in operation["parameters"] if each["in"] == "query"]
            rows.append(
                (
                    f"`{method.upper()} {path}`",
                    operation["responses"][min(operation["responses"])]["description"],
                    ", ".join(f"`{name}`" for name in names),
                )
            )
    return table(("request", "answer", "parameters"), rows)


def api_problems() -> str:
    """Every kind of problem with its remedy."""
    rows = []
    for kind in sorted(PageError.__subclasses__(), key=lambda each: (each.status, each.cause)):
        meaning, _, remedy = (inspect.getdoc(kind) or "").partition("\n\n")
        rows.append((str(kind.status), f"`{kind.cause}`", first_line(meaning), " ".join(remedy.split())))
    return table(("status", "cause", "meaning", "what to do"), rows)
