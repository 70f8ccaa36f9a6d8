"""What `relay demo --once` says at the end: the verdict, the numbers, and what differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inbox.cli.terminal import cell
from inbox.logs.visible import visible
from relay.demo.compare import Difference

_MOST_DIFFERENCES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How it went. `agree` is the verdict: nothing differs and nothing is left to do."""

    agree: bool
    differences: tuple[Difference, ...]
    entities: int
    fields: int
    changes: int
    created: int
    updated: int
    deleted: int
    webhooks: int
    webhooks_refused: int
    webhooks_unsent: int
    events: int
    duplicates: int
    calls: int
    calls_failed_503: int
    in_flight_when_killed: int
    takeovers: int
    failed_attempts: int
    delivered: int
    superseded: int
    rearmed: int
    replayed: int
    unchanged: int
    stale_reads: int
    untold: int
    swept: int
    orphans: int
    in_step: int
    not_in_step: int
    dead: int
    still_open: int
    seed: int
    seconds: float
    folder: str

    def as_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return asdict(self)


def show_summary(console: Console, summary: Summary) -> None:
    """The numbers as a table, then the differences as another, then the verdict."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for name, value, note in _rows(summary):
        table.add_row(name, str(value), note)
    console.print()
    console.print(table)
    console.print()
    if summary.differences:
        console.print(_differences(summary.differences))
        console.print()
    console.print(verdict(summary))


def verdict(summary: Summary) -> Text:
    """One sentence, and what to do when the services do not agree."""
    if summary.agree:
        return Text.assemble(
            ("Both services agree", "bold green"),
            f" in all {summary.fields} fields of {summary.entities} users and groups, after {summary.seconds} s.",
        )
    parts = (
        (len(summary.differences), "differences"),
        (summary.still_open, "deliveries still to be made"),
        (summary.webhooks_unsent, "webhooks not accepted yet"),
        (summary.not_in_step, "entities that `relay plan` would change"),
    )
    what = ", ".join(f"{number} {name}" for number, name in parts if number)
    return Text.assemble(
        ("The services do not agree:", "bold red"),
        f" {what}. Everything is kept in {visible(summary.folder)}: "
        f"look at relay.log there, and `relay dead`; --seed {summary.seed} makes the same changes again.",
    )


def _rows(summary: Summary) -> tuple[tuple[str, int, str], ...]:
    return (
        ("changes", summary.changes, f"{summary.created} creates, {summary.updated} edits, {summary.deleted} deletes"),
        ("webhooks sent", summary.webhooks, f"{summary.webhooks_refused} of them without a 2xx"),
        ("events stored", summary.events, "one row of inbox each"),
        ("duplicates", summary.duplicates, "webhooks sent again after a lost answer, recognised"),
        ("calls", summary.calls, "at the commercial service"),
        ("503s", summary.calls_failed_503, "of these calls failed on purpose"),
        ("stale reads", summary.stale_reads, "older than their event, so read again a second later"),
        ("failed attempts", summary.failed_attempts, "tried again later"),
        ("takeovers", summary.takeovers, f"the killed relay left {summary.in_flight_when_killed} deliveries half-way"),
        ("delivered", summary.delivered, "made the other side alike"),
        ("unchanged", summary.unchanged, "nothing was new for the other side: nothing was sent"),
        ("superseded", summary.superseded, "a newer event of the same entity stood for them"),
        (
            "re-armed",
            summary.rearmed,
            "of these made again: a duplicate may stand for a second change that looks the same",
        ),
        ("dead", summary.dead, "given up"),
        ("missed webhooks", summary.swept, f"found by `relay sweep`; {summary.untold} changes were told by none"),
        (
            "orphans",
            summary.orphans,
            "left by an untold deletion, found by `relay sweep --full`",
        ),
        ("in step", summary.in_step, f"entities, by `relay plan`, and {summary.not_in_step} not"),
    )


def _differences(differences: tuple[Difference, ...]) -> Table:
    more = len(differences) - _MOST_DIFFERENCES
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title="what differs",
        title_justify="left",
        caption=f"and {more} more" if more > 0 else None,
    )
    for column in ("record", "external_id", "field", "expected", "found"):
        table.add_column(column, overflow="fold")
    for difference in differences[:_MOST_DIFFERENCES]:
        table.add_row(*(cell(value) for value in asdict(difference).values()))
    return table
