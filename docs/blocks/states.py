"""The state machine, from `relay.delivery.lifecycle`, `relay.delivery.facts` and `relay.delivery.outcome`."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from docs.blocks.common import MEANINGS, ROOT, field_docstrings, first_line, table
from relay.delivery import facts
from relay.delivery.lifecycle import HEADS, SCHEDULING, TERMINAL, TRANSITIONS, State, Step


def states_diagram() -> str:
    """Draw the transitions between states, each with its steps."""
    edges: dict[tuple[State, State], list[str]] = {}
    for state, steps in TRANSITIONS.items():
        for step, to in steps.items():
            edges.setdefault((state, to), []).append(step.value)
    width = max(map(len, State))
    lines = [f"{'an event':{width}} ──► {State.RECEIVED}"]
    before: State | None = None
    for (state, to), names in edges.items():
        if state is not before:
            lines.append("")
        lines.append(f"{'' if state is before else state:{width}} ──► {to:{width}}  {', '.join(names)}")
        before = state
    return "\n".join(["```text", *lines, "```"])


def states() -> str:
    """Every state, and whether it is its lane's head."""
    return table(
        ("state", "meaning", "head of its lane"),
        ((f"`{state}`", MEANINGS["states"][state.value], "yes" if state in HEADS else "") for state in State),
    )


def scheduling_steps() -> str:
    """The steps that are no facts."""
    return table(
        ("step", "meaning"),
        ((f"`{step}`", MEANINGS["scheduling"][step.value]) for step in Step if step in SCHEDULING),
    )


def fact_kinds() -> str:
    """Every kind of fact: whether it ends the delivery, what its detail holds, and where it is made."""
    rows = []
    for cls in facts.AnyFact.__args__:
        kind = str(cls.__struct_config__.tag)
        explained = field_docstrings(cls)
        detail = (
            f"`{name}`" + (f" ({explained[name]})" if name in explained else "") for name in cls.__struct_fields__
        )
        meaning = first_line(cls.__doc__).removesuffix(" Terminal.")
        rows.append(
            (f"`{kind}`", meaning, "yes" if Step(kind) in TERMINAL else "", ", ".join(detail), _made_in(cls.__name__))
        )
    return table(("kind", "meaning", "ends it", "`detail` holds", "made in"), rows)


MADE_BY_SQL = {"Erased": "inbox/db/erasure.py"}
"""Facts that no call of the relay makes."""


def _made_in(fact: str) -> str:
    """The files that make a fact."""
    files = [str(file) for file, made in _calls().items() if made & {f"facts.{fact}", fact}]
    return (
        ", ".join(f"`{file}`" for file in (*files, *([MADE_BY_SQL[fact]] if fact in MADE_BY_SQL else ())))
        or "nowhere yet"
    )


@cache
def _calls() -> dict[Path, set[str]]:
    """Map each file of the relay to the functions that it calls; a pattern of a `match` is no call."""
    return {
        path.relative_to(ROOT): {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        for path in sorted((ROOT / "relay").rglob("*.py"))
    }
