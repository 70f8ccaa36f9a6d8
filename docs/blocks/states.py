"""The state machine, from `relay.delivery.lifecycle`, `relay.delivery.facts` and `relay.delivery.outcome`."""

from __future__ import annotations

from docs.blocks.common import MEANINGS, extract_summary, format_table, read_field_docstrings
from relay.delivery import facts
from relay.delivery.lifecycle import ENDING_STEPS, HEADS, SCHEDULING, TRANSITIONS, State, Step


def draw_states() -> str:
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


def list_states() -> str:
    """Tabulate the states, and mark those of a lane's head."""
    return format_table(
        ("state", "meaning", "head of its lane"),
        ((f"`{state}`", MEANINGS["states"][state.value], "yes" if state in HEADS else "") for state in State),
    )


def list_scheduling_steps() -> str:
    """Tabulate the steps that leave no fact."""
    return format_table(
        ("step", "meaning"),
        ((f"`{step}`", MEANINGS["scheduling"][step.value]) for step in Step if step in SCHEDULING),
    )


def list_fact_kinds() -> str:
    """Tabulate the kinds of facts, with their details."""
    rows = []
    for cls in facts.AnyFact.__args__:
        kind = str(cls.__struct_config__.tag)
        explained = read_field_docstrings(cls)
        detail = (
            f"`{name}`" + (f" ({explained[name]})" if name in explained else "") for name in cls.__struct_fields__
        )
        meaning = extract_summary(cls.__doc__).removesuffix(" Terminal.")
        rows.append((f"`{kind}`", meaning, "yes" if Step(kind) in ENDING_STEPS else "", ", ".join(detail)))
    return format_table(("kind", "meaning", "ends it", "`detail` holds"), rows)
