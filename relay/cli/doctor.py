"""`inbox doctor`: examines a running installation, and shows each finding with the command that mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from inbox.observe.visible import visible_line
from relay.cli.options import AsJson
from relay.cli.terminal import FINDING, as_document, console, exit_on_error, fail, put, put_json
from relay.words import counted

if TYPE_CHECKING:
    from relay.doctor.run import ExaminationResult, Installation
    from relay.findings import Finding

_STYLES = {"critical": ("!", "bold red"), "warning": ("!", "yellow"), "information": ("i", "cyan")}
_LEAST_WIDTH = 40


def doctor_command(
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

    names = [each.name for each in EXAMINATIONS]
    for name in only or ():
        if name not in names:
            fail(f"--only: there is no examination {name!r}; {nearest(name, names)}")
    with exit_on_error(), installed() as installation:
        results = run(installation, [each for each in EXAMINATIONS if not only or each.name in only])
    if as_json:
        put_json(as_document(_document(installation, results)))
    else:
        for line in lines_of(results, width=console().width if console().is_terminal else None):
            put(line)
    if in_need(results):
        raise typer.Exit(FINDING)


def _document(installation: Installation, results: Sequence[ExaminationResult]) -> dict[str, object]:
    import msgspec

    from relay.findings import LEVELS

    every = [each for result in results for each in result.findings]
    return {
        "at": installation.now,
        "host": installation.host,
        "file": str(installation.path),
        **{level: sum(each.level == level for each in every) for level in LEVELS},
        "examinations": [msgspec.to_builtins(each) for each in results],
    }


def lines_of(results: Sequence[ExaminationResult], *, width: int | None) -> Iterator[Text]:
    """Yield the report's lines, the critical findings first. Without a width lines have any length."""
    found = [each for result in results for each in result.findings]
    yield _headline(results, [each for each in found if each.level != "information"])
    if found:
        yield Text()
    for each in sorted(found, key=lambda one: [*_STYLES].index(one.level)):
        mark, style = _STYLES[each.level]
        lines = [*_wrapped(f"  {mark} {each.kind}: {each.sentence}", width)]
        lines[0].stylize(style, 0, len(f"  {mark} {each.kind}:"))
        yield from lines
        if each.why:
            yield from _wrapped(f"    {each.why}", width)
        if each.remedy:
            yield Text(f"      {visible_line(' '.join(each.remedy.split()))}", "cyan")
    missing = [result for result in results if result.needs]
    if missing:
        yield Text("\nNot examined", "bold")
    for result in missing:
        part = " (in part)" if result.findings else ""
        yield from _wrapped(f"  - {result.name}{part}: {result.needs}", width)
    clean = [result.name for result in results if not result.needs and not result.findings]
    if clean:
        yield Text()
        yield from _wrapped(f"Nothing found by: {', '.join(clean)}", width, indent="  ")


def _headline(results: Sequence[ExaminationResult], found: Sequence[Finding]) -> Text:
    critical = sum(each.level == "critical" for each in found)
    line = Text()
    line.append("not well" if found else "well", "bold red" if critical else "bold yellow" if found else "bold green")
    line.append(f": {counted(len(found), 'finding')}" if found else ": no finding")
    line.append(f", {critical} critical" if critical else "")
    missing = sum(bool(result.needs) for result in results)
    line.append(f"; {counted(len(results) - missing, 'examination')}")
    line.append(f", {missing} not made in full" if missing else "")
    return line


def _wrapped(text: str, width: int | None, indent: str = "    ") -> list[Text]:
    """Break an escaped text between words where it stands at a terminal of this width."""
    shown = visible_line(text)
    if width is None:
        return [Text(shown)]
    wrapper = textwrap.TextWrapper(max(width, _LEAST_WIDTH), subsequent_indent=indent)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return [Text(line) for line in wrapper.wrap(shown)]
