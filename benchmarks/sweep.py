"""`relay sweep` over many entities of which none was changed: how long it takes, and how much memory it needs.

It is held against a bare loop that gets and parses the same pages, and compares nothing.
"""

from __future__ import annotations

import json
import time
from typing import Annotated

import requests
import typer

from benchmarks.support import Kind, Side, configured, count_rows, databases, free_port, machine, report, running
from benchmarks.verify import BAR_MIB, fill, run

_TABLE = """
[apis.directory]
base_url = "{url}"
allow_private = true
allow_http = true
[[sources.trivore.sweeps]]
api = "directory"
path = "/user"
entity_type = "USER"
pages = {{ by = "start", count = {count} }}
"""


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Which database.")] = Kind.POSTGRES,
    entities: Annotated[int, typer.Option(min=1000, max=10_000_000, help="How many; each has one event.")] = 100_000,
    count: Annotated[int, typer.Option(min=2, max=10_000, help="Of a page.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure `relay sweep` as a process of its own, starting and stopping included."""
    swept, bare = Side("relay sweep"), Side("a bare loop: get and parse, nothing compared")
    peak = 0.0
    url = f"http://127.0.0.1:{free_port()}"
    arguments = (url.rpartition(":")[2], str(entities))
    with (
        databases(database) as (stored,),
        configured(stored, more=_TABLE.format(url=url, count=count)) as environment,
        running("benchmarks.directory", *arguments, ready=f"{url}/user?count=1"),
    ):
        fill(stored, entities)
        for _ in range(rounds):
            # Since the beginning, for the watermark of the round before would leave nothing to compare.
            ended = run(entities, environment, "sweep", "--source", "trivore", "--since", "2000-01-01")
            swept.rates.append(entities / ended.seconds)
            peak = max(peak, ended.peak_mib)
            bare.rates.append(_bare_loop(f"{url}/user", entities, count))
        if count_rows(stored, "inbox") != entities:
            raise SystemExit("a sweep has added events though nothing was changed")
    met = "met" if peak <= BAR_MIB else "missed"
    notes = {"entities": entities, "a_page": count, "peak_mib": peak, f"bar_of_{BAR_MIB}_mib": met, **machine()}
    report(f"Sweep, {database}: entities compared per second", [swept, bare], notes, as_json=as_json)


def _bare_loop(url: str, entities: int, count: int) -> float:
    began, seen = time.monotonic(), 0
    with requests.Session() as session:
        session.trust_env = False
        while page := json.loads(session.get(f"{url}?startIndex={seen}&count={count}", timeout=30).content)[
            "resources"
        ]:
            seen += len(page)
    if seen != entities:
        raise SystemExit(f"{seen} of {entities} entities were listed")
    return entities / (time.monotonic() - began)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
