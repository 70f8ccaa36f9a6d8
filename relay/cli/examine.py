"""`inbox check` judges a configuration, `inbox doctor` a running installation; each finding says how to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from inbox.errors import ConfigError
from inbox.observe.visible import visible, visible_line
from relay.cli.options import AsJson
from relay.cli.output import FINDING, WRONG_USE, bar, exit_on_error, fail, hanging, put, put_json, terminal_width
from relay.words import counted

if TYPE_CHECKING:
    from inbox.loader.load import ConfigFile
    from relay.check import ConfigFinding, DatabaseState, Reply
    from relay.doctor.run import ExaminationResult

_LINE = re.compile(r"\(at line (\d+)")
"""The place in an error of the TOML parser."""
_SECTIONS = (("sources", "source"), ("routes", "route"), ("apis", "api"), ("destinations", "destination"))
_STYLES = {"mistake": "bold red", "critical": "bold red", "warning": "yellow", "information": "cyan"}


def check(
    *,
    online: Annotated[
        bool,
        typer.Option("--online", help="Also ask the database and each api and destination; nothing changes there."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the configuration as both sides would at their start, and show every mistake with its line.

    Exits 2 with a mistake, by which the receiver or the relay would not start; 1 with warnings only; else 0. Functions of
    yours are imported, a SQLite database is looked at, and without --online nothing leaves this machine.

    Examples:
      inbox check
      inbox check --online
      INBOX_CONFIG=/etc/inbox-relay/new.toml inbox check --json
    """
    from inbox.loader.load import config_path, load_file
    from relay.check import ConfigFinding, asked, database_of, findings, probes, unreached

    path, file, database = config_path(), None, None
    replies: list[Reply] = []
    try:
        file = load_file(path)
    except ConfigError as error:
        line = _LINE.search(str(error))
        text = str(error).removeprefix(f"{path} ")
        found = [ConfigFinding(str(path), int(line[1]) if line else None, "", text, "mistake")]
    else:
        found = findings(file, path)
        database, of_database = database_of(file, online=online)
        found += [each for each in of_database if each not in found]
        if online and (questions := probes(file.sound)):
            with bar("asking", len(questions)) as report:
                for reply in asked(questions):
                    replies.append(reply)
                    report(doing=f"asked {reply.key}")
            found += unreached(file, replies)
    mistakes = sum(each.level == "mistake" for each in found)
    if as_json:
        put_json(
            {
                "file": str(path),
                **{section: sorted(file.source.tree.get(section, {})) if file else [] for section, _ in _SECTIONS},
                "database": database,
                "mistakes": mistakes,
                "warnings": len(found) - mistakes,
                "findings": found,
                "asked": replies,
            }
        )
    else:
        put(*_checked(str(path), found, replies, file, database), _verdict(mistakes, len(found) - mistakes))
    if found:
        raise typer.Exit(WRONG_USE if mistakes else FINDING)


def _checked(
    path: str,
    found: Sequence[ConfigFinding],
    replies: Sequence[Reply],
    file: ConfigFile | None,
    database: DatabaseState | None,
) -> Iterator[Text]:
    """Yield every finding, the systems that answered, and what was checked."""
    for each in sorted(found, key=lambda one: (one.level, one.line is None, one.line or 0)):
        text = visible(str(each))
        yield from hanging(f"{each.level}  ", text, terminal_width(), label_style=_STYLES[each.level])
    for reply in replies:
        if reply.reached:
            line = f"  {reply.key}: {reply.url} {reply.text}, {reply.milliseconds:.0f} ms"
            yield Text.assemble(("reached", "green"), visible(line))
    if file is not None:
        counts = [counted(len(file.source.tree.get(section, {})), word) for section, word in _SECTIONS]
        yield Text(visible(f"{path}: {', '.join(counts)}"))
        retention = file.sound.retention
        ages = [f"{kind} {retention.age_of(kind).shown}" for kind in ("payloads", "events", "attempts", "rejected")]
        yield Text(f"retention: {', '.join(ages)}")
    if database is not None and database.url:
        state = "not asked; --online does" if database.state == "not asked" else database.state
        yield Text(visible(f"{database.origin}: {database.url} ({state})"))


def _verdict(mistakes: int, warnings: int) -> Text:
    if mistakes:
        return Text(f"{counted(mistakes, 'mistake')}, {counted(warnings, 'warning')}", "bold red")
    if warnings:
        return Text(f"both sides would start; {counted(warnings, 'warning')}", "yellow")
    return Text("both sides would start", "green")


def doctor(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Only this examination; may be given again."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine the running installation: database, schema, disk, configuration, and what needs a person in the relay.

    Exits 1 with a finding, else 0; information is none. Each finding says what was seen, why it matters, and the command that
    mends it. Nothing is changed and no table is read whole. An examination that fails, for want of rights or time, is
    reported with what it needs, and stops no other.

    `inbox check` judges a configuration before you use it, and asks other systems; this judges what runs.

    Examples:
      inbox doctor
      inbox doctor --only disk --only schema
      inbox doctor --json
    """
    from inbox.config.mistakes import nearest
    from relay.doctor.examinations import EXAMINATIONS
    from relay.doctor.run import in_need, installed, run
    from relay.findings import LEVELS

    names = [each.name for each in EXAMINATIONS]
    for name in only or ():
        if name not in names:
            fail(f"--only: there is no examination {name!r}; {nearest(name, names)}")
    with exit_on_error(), installed() as installation:
        results = run(installation, [each for each in EXAMINATIONS if not only or each.name in only])
    if as_json:
        every = [each for result in results for each in result.findings]
        document: dict[str, Any] = {
            "at": installation.now,
            "host": installation.host,
            "file": str(installation.path),
            **{level: sum(each.level == level for each in every) for level in LEVELS},
            "examinations": results,
        }
        put_json(document)
    else:
        put(*lines_of(results, width=terminal_width()))
    if in_need(results):
        raise typer.Exit(FINDING)


def lines_of(results: Sequence[ExaminationResult], *, width: int | None) -> Iterator[Text]:
    """Yield the report's lines, the critical findings first. Without a width lines have any length."""
    found = sorted(
        (each for result in results for each in result.findings), key=lambda one: [*_STYLES].index(one.level)
    )
    needed = sum(each.level != "information" for each in found)
    critical = sum(each.level == "critical" for each in found)
    missing = [result for result in results if result.needs]
    line = Text.assemble(
        ("not well", "bold red" if critical else "bold yellow") if needed else ("well", "bold green"),
        f": {counted(needed, 'finding')}" if needed else ": no finding",
        f", {critical} critical" if critical else "",
        f"; {counted(len(results) - len(missing), 'examination')}",
        f", {len(missing)} not made in full" if missing else "",
    )
    yield line
    if found:
        yield Text()
    for each in found:
        mark = "i" if each.level == "information" else "!"
        sentence = visible_line(f"{each.kind}: {each.sentence}")
        yield from hanging(f"  {mark} ", sentence, width, label_style=_STYLES[each.level])
        if each.why:
            yield from hanging("    ", visible_line(each.why), width)
        if each.remedy:
            yield Text(f"      {visible_line(' '.join(each.remedy.split()))}", "cyan")
    if missing:
        yield Text("\nNot examined", "bold")
    for result in missing:
        part = " (in part)" if result.findings else ""
        yield from hanging("  - ", visible_line(f"{result.name}{part}: {result.needs}"), width)
    clean = [result.name for result in results if not result.needs and not result.findings]
    if clean:
        yield Text()
        yield from hanging("Nothing found by: ", ", ".join(clean), width)
