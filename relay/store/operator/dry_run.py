"""Dry runs of commands about deliveries: the plan that the command line shows, made page by page and kept in the command's row."""

from __future__ import annotations

from typing import Any

import msgspec

from inbox.db.dialect import as_json
from relay.store.database import Database
from relay.store.operator import plan, selected
from relay.store.operator.commands import BatchResult
from relay.store.operator.plan import LEFT_OUT, Plan
from relay.store.operator.selection import Act, Choice

SAMPLE = 10
"""Deliveries that the row lists; `relay_command.matched` counts all."""
PAGE = 200

_WORDS: dict[Act, str] = {"replay": "replayed", "retry": "retried", "cancel": "cancelled", "unblock": "unblocked"}


def step(database: Database, choice: Choice, command: Any) -> BatchResult:  # noqa: ANN401  # a result row
    """Examine the next page of the selected deliveries. It changes none, and never takes longer than a page takes."""
    page = selected.page(database, choice, after=command.progress_seq or 0, most=PAGE)
    so_far = plan.merged(_noted(command), plan.examine(database, choice, page), SAMPLE)
    is_done = page.upto is None
    return BatchResult(
        "done" if is_done else "running",
        progress=command.progress_seq if is_done else page.upto,
        answer=_answer(choice.act, so_far) if is_done else "counting",
        matched=so_far.count,
        sample={
            "groups": [msgspec.structs.asdict(group) for group in so_far.groups],
            "left_out": so_far.left_out,
            "deliveries": so_far.deliveries,
        },
    )


def _noted(command: Any) -> Plan:  # noqa: ANN401  # a result row
    if command.sample is None:
        return Plan(0)
    return msgspec.convert({"count": command.matched, **as_json(command.sample)}, Plan)


def _answer(act: Act, planned: Plan) -> str:
    word = "delivery" if planned.count == 1 else "deliveries"
    said = [f"dry run: {planned.count} {word} would be {_WORDS[act]}"]
    said += [f"{number} left out: {LEFT_OUT[why]}" for why, number in planned.left_out.items()]
    return "; ".join(said)
