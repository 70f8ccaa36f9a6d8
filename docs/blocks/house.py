"""The packages and the imports between them."""

from __future__ import annotations

import ast

from docs.blocks.common import ROOT


def draw_packages() -> str:
    """Draw the packages and their imports, which lead only to lines below.

    Raises:
        SystemExit: packages import each other in a circle.
    """
    below = _find_imports()
    lines = []
    while below:
        free = sorted(name for name in below if not any(name in others for others in below.values()))
        if not free:
            raise SystemExit(f"packages import each other: {', '.join(sorted(below))}")
        lines += [(name, sorted(below[name] - _find_reachable(below, below[name]))) for name in free]
        for name in free:
            del below[name]
    width = max(len(name) for name, _ in lines)
    drawn = (f"{name:{width}} {'──► ' if to else ''}{', '.join(to)}".rstrip() for name, to in lines)
    return "\n".join(["```text", *drawn, "```"])


def _find_imports() -> dict[str, set[str]]:
    """Map each package, or module beside the packages, to those that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(path for package in ("inbox", "relay") for path in (ROOT / package).rglob("*.py")):
        name = _find_package(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if name is None:
            continue
        imported = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {other for each in modules if (other := _find_package(each)) and other != name}
    return {name: others & found.keys() for name, others in found.items()}


def _find_package(module: str) -> str | None:
    """Return the place of a module in the picture: `inbox/db` of `inbox.db.engine`."""
    top, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return f"{top}/{inner}" if top in {"inbox", "relay"} and inner not in {"", "__init__", "__main__"} else None


def _find_reachable(below: dict[str, set[str]], start: set[str]) -> set[str]:
    """Return the packages that `start` imports, directly or not."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        for name in below[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found
