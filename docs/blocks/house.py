"""The files and the arrows between them, from docstrings and import-linter's contracts."""

from __future__ import annotations

import ast
import tomllib

from docs.blocks.common import ROOT, first_line, table


def rooms() -> str:
    """Every file of both sides, by the first sentence of its docstring; what only decides is marked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    pure = next(c["source_modules"] for c in contracts if c["name"].startswith("Packages that decide"))
    rows = []
    for path in sorted(path for package in ("inbox", "relay") for path in (ROOT / package).rglob("*.py")):
        name, docstring = path.relative_to(ROOT), ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        module = ".".join(name.with_suffix("").parts)
        if path.parent.name == "demo" and path.name != "__init__.py":
            continue
        decides = any(module == each or module.startswith(f"{each}.") for each in pure)
        rows.append((f"`{name}`", "decides" if decides else "", first_line(docstring)))
    return table(("file", "", "what it is"), rows)


def arrows() -> str:
    """The contracts between modules that `make check` holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = []
    for contract in project["tool"]["importlinter"]["contracts"]:
        lines.append(f"- {contract['name']}.")
        if contract["type"] == "layers":
            lines[-1] += " Each line may import what is below it:\n"
            lines += ["  ```text", *(f"  {layer}" for layer in contract["layers"]), "  ```\n"]
    return "\n".join(lines)
