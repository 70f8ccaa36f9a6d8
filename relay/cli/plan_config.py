"""`relay plan --config`: what another configuration would make of the newest events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import typer

from inbox.cli.options import require_known
from inbox.cli.tables import Column, Format, show
from inbox.cli.terminal import FINDING, exit_on_error, say
from inbox.cli.wording import counted
from relay.cli.options import open_database

COLUMNS = (
    Column("route"),
    Column("part"),
    Column("events", "number"),
    Column("last_seq", "number"),
    Column("before"),
    Column("after", last=True),
    Column("source", on_request=True),
)


def plan_config(path: Path, form: Format, *, route: str | None, events: int, fetch: bool) -> None:
    """Compare the configuration in `path` with today's, print the differences, and exit by them."""
    from inbox.loader.load import load_file
    from relay.destinations.comparison import Variant, compare
    from relay.store import arrived

    found: dict[tuple[object, ...], dict[str, Any]] = {}
    number = differ = 0
    with exit_on_error():
        today, database = open_database()
        file = load_file(path)
        require_known("route", route, (*today.routes, *file.sound.routes))
        old, new = (
            each.make(lambda config: Variant(config, only_route=route, fetches=fetch)) for each in (load_file(), file)
        )
        try:
            for event in arrived.newest(database, events):
                number += 1
                differences = [*compare(old, new, event)]
                differ += bool(differences)
                for each in differences:
                    key = each.source, each.route, each.part, repr(each.before), repr(each.after)
                    row = {**msgspec.structs.asdict(each), "events": 0, "last_seq": each.seq}
                    found.setdefault(key, row)["events"] += 1
        finally:
            old.close()
            new.close()
    differing = f"{differ:,} differ" if differ else "no difference"
    summary = f"{counted(number, 'event')} compared: {differing}"
    show([*found.values()], COLUMNS, form, empty=summary)
    if found and form.is_table:
        say(summary)
    for name in () if fetch else sorted(today.routes.keys() & new.config.routes.keys()):
        if route in {None, name} and today.routes[name].sync != new.config.routes[name].sync:
            say(f"[routes.{name}.sync] differs: --fetch compares the writes that would follow")
    if found:
        raise typer.Exit(FINDING)
