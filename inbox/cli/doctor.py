"""`inbox doctor`: examines a running installation, and shows each finding with the command that mends it."""

from __future__ import annotations

import socket
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn
from rich.text import Text

from inbox.cli.options import AsJson
from inbox.cli.terminal import FINDING, Doing, as_document, bar, console, exit_on_error, fail, put, put_json
from inbox.cli.wording import counted
from inbox.clock import SystemClock
from inbox.observe.visible import visible_line

if TYPE_CHECKING:
    from inbox.doctor.run import ExaminationResult
    from inbox.examination import DoctorFinding, Examination, Installation

_STYLES = {"critical": "bold red", "warning": "yellow", "information": "cyan"}
_MARKS = {"critical": "!", "warning": "!", "information": "i"}
_LEAST_WIDTH = 40
_LONGEST_COMMAND = 400


def doctor_command(
    *,
    online: Annotated[
        bool, typer.Option("--online", help="Also ask each api and destination; nothing changes there.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help="Only this examination; may be given again. `--list` has the names."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the examinations instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Examine the running installation: database, server, disk, configuration, traffic, relays and deliveries.

    Exits 1 with a finding, else 0; information is none. Each finding says what was seen, why it matters, and the command that
    mends it. Nothing is changed and no table is read whole. An examination that fails, for want of rights or time, is
    reported with what it needs, and stops no other.

    `inbox check` judges a configuration before you use it; this judges what runs.

    Examples:
      inbox doctor
      inbox doctor --online
      inbox doctor --only disk --only sequences
      inbox doctor --json
    """
    from inbox.doctor.registry import examinations
    from inbox.doctor.run import findings, run

    every = examinations()
    if listed:
        _list(every, as_json=as_json)
        return
    chosen = _chosen(every, only or [], online=online)
    with exit_on_error():
        installation = _installation()
    try:
        with bar(Doing("examines "), BarColumn(), MofNCompleteColumn()) as progress:
            task = progress.add_task("", total=len(chosen))
            results = run(installation, chosen, lambda name: progress.update(task, advance=1, description=name))
    finally:
        if installation.engine is not None:
            installation.engine.dispose()
    found = [*findings(results)]
    if as_json:
        put_json(as_document(_document(installation, results)))
    else:
        for line in lines_of(results, width=console().width if console().is_terminal else None):
            put(line)
    if found:
        raise typer.Exit(FINDING)


def _list(every: Sequence[Examination], *, as_json: bool) -> None:
    rows = [
        {
            "name": each.name,
            "section": each.section,
            "looks_at": each.looks_at,
            "databases": list(each.on),
            "online": each.is_online,
            "findings": [kind.name for kind in each.kinds],
        }
        for each in every
    ]
    if as_json:
        put_json(as_document(rows))
        return
    width = max(len(each.name) for each in every)
    for each in every:
        put(Text.assemble((f"{each.name:{width}}", "bold"), f"  {each.looks_at}"))


def _chosen(every: Sequence[Examination], only: Sequence[str], *, online: bool) -> list[Examination]:
    from inbox.config.mistakes import nearest

    names = [each.name for each in every]
    for name in only:
        if name not in names:
            fail(f"--only: there is no examination {name!r}; {nearest(name, names)}")
    chosen = [each for each in every if not only or each.name in only]
    asking = [each.name for each in chosen if each.is_online]
    if only and asking and not online:
        fail(f"the examination {asking[0]} asks other systems: add --online")
    return [each for each in chosen if online or not each.is_online]


def _installation() -> Installation:
    from inbox.db import read_only
    from inbox.errors import ConfigError
    from inbox.examination import Installation
    from inbox.loader.load import config_path, load_file

    path = config_path()
    file = load_file(path)
    try:
        engine = read_only.connect(file.sound.database.url, application="inbox-doctor")
    except ConfigError:  # the examinations of the database say so
        engine = None
    return Installation(path, file, SystemClock().now(), socket.gethostname(), engine)


def _document(installation: Installation, results: Sequence[ExaminationResult]) -> dict[str, Any]:
    import msgspec

    from inbox.doctor.run import SEVERITIES

    every = [each for result in results for each in result.findings]
    return {
        "at": installation.now,
        "host": installation.host,
        "file": str(installation.path),
        **{severity: sum(each.severity == severity for each in every) for severity in SEVERITIES},
        "examinations": [msgspec.to_builtins(each) for each in results],
    }


def lines_of(results: Sequence[ExaminationResult], *, width: int | None) -> Iterator[Text]:
    """Yield the report's lines. Without a width lines have any length."""
    yield _headline(results)
    for section in dict.fromkeys(result.section for result in results):
        found = [each for result in results if result.section == section for each in result.findings]
        if found:
            yield Text()
            yield Text(section, "bold")
            for each in sorted(found, key=lambda one: [*_STYLES].index(one.severity)):
                yield from _finding(each, width)
    missing = [result for result in results if not result.is_whole]
    if missing:
        yield Text()
        yield Text("Not examined", "bold")
        for needs in dict.fromkeys(result.needs for result in missing):
            names = [
                f"{result.name} (in part)" if result.state == "partly examined" else result.name
                for result in missing
                if result.needs == needs
            ]
            yield from _wrapped(f"  - {', '.join(names)}: {needs}", width)
    clean = [result.name for result in results if result.state == "examined" and not result.findings]
    if clean:
        yield Text()
        yield from _wrapped(f"Nothing found by: {', '.join(clean)}", width, indent="  ")


def _headline(results: Sequence[ExaminationResult]) -> Text:
    from inbox.doctor.run import findings

    found = [*findings(results)]
    critical = sum(each.severity == "critical" for each in found)
    line = Text()
    line.append("not well" if found else "well", "bold red" if critical else "bold yellow" if found else "bold green")
    line.append(f": {counted(len(found), 'finding')}" if found else ": no finding")
    if critical:
        line.append(f", {critical} critical")
    whole = sum(result.state == "examined" for result in results)
    line.append(f"; {counted(whole, 'examination')}")
    missing = sum(not result.is_whole for result in results)
    if missing:
        line.append(f", {missing} not made in full")
    return line


def _finding(finding: DoctorFinding, width: int | None) -> Iterator[Text]:
    lines = [*_wrapped(f"  {_MARKS[finding.severity]} {finding.name}: {finding.what}", width)]
    lines[0].stylize(_STYLES[finding.severity], 0, len(f"  ! {finding.name}:"))
    yield from lines
    if finding.why:
        yield from _wrapped(f"    {finding.why}", width)
    if finding.mend:
        command = visible_line(" ".join(finding.mend.split()))
        if len(command) > _LONGEST_COMMAND:
            command = f"inbox doctor --json # its field mend has the statement for {visible_line(finding.subject)}"
        yield Text(f"      {command}", "cyan")


def _wrapped(text: str, width: int | None, indent: str = "    ") -> list[Text]:
    """Break an escaped text between words where it stands at a terminal of this width."""
    shown = visible_line(text)
    if width is None:
        return [Text(shown)]
    return [
        Text(line)
        for line in textwrap.wrap(
            shown, max(width, _LEAST_WIDTH), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    ]
