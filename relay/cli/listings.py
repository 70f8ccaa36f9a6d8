"""Commands that list rows: `inbox list`, `inbox rejected`, `inbox commands` and `relay dead`, and both `tail` commands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from inbox.clock import SystemClock
from relay.cli import options
from relay.cli.options import as_command, open_database, option, parse_entity, require_known
from relay.cli.output import (
    FINDING,
    fail,
    make_title,
    put,
    put_json,
    say,
    show,
    show_fields,
    table,
    terminal_width,
)
from relay.operations.asks import Rejections, Selection
from relay.words import describe_state, format_count, format_relative, format_time_of_day, put_in_words

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config
    from inbox.db.following import Feed, Follower
    from inbox.db.listing import AnyListing, RowPage
    from inbox.db.reads import Row
    from relay.filters import Filtered

_ABOUT = {
    **options.conditions(Selection, "source", "route", "destination"),
    "entity": option(str, "entity", "Only this entity, as TYPE/ID, or all entities of a TYPE."),
    **options.conditions(Selection, "event_type", "status", "error"),
}
_REQUEST = options.conditions(Rejections, "source", "cause", "status", "error")
_OUTPUT = {
    "wide": option(bool, "wide", "Show every column untruncated, with absolute times."),
    "as_ndjson": option(bool, "ndjson", "Print JSON, one object per line, with every column."),
}
_OF_LISTS = {
    "since": options.Since,
    "until": options.Until,
    "limit": option(int, "limit", "Most rows to show; 50 by default, all with --ndjson.", min=1, max=10_000),
    "columns": option(str, "columns", "Show these columns; an unknown name lists the valid ones.", metavar="A,B,…"),
    "as_json": options.AsJson,
    **_OUTPUT,
}
_BEFORE = option(int, "before", "Only rows below this seq or id, for the next page.")
_SHOWN = 50
"""Rows of a listing without `--limit`."""
_EXCERPT = 4096
"""Bytes shown of a body."""


class ListCommand(msgspec.Struct, frozen=True):
    """A command that lists rows, newest first, or follows them."""

    name: Filtered
    noun: str
    """Plural noun for the rows, such as `events`."""
    columns: str
    """Columns of the table, separated by spaces: see `relay.cli.output`."""
    one: tuple[str, str] = ("", "")
    """Database table and noun for a single row, which an option `number` selects."""

    def names(self, wanted: str | None = None) -> list[str]:
        """Return the columns to show; exit with 2 if a wanted one does not exist."""
        every = self.columns.split()
        if wanted is None:
            return every
        known = {make_title(name).replace(" ", "_"): name for name in every} | {name: name for name in every}
        asked = [name.strip().replace(" ", "_") for name in wanted.split(",")]
        for name in asked:
            require_known("column", name, known)
        return [known[name] for name in asked]


def _command(run: Callable[..., None], listing: ListCommand, given: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Make a command from a function that returns the extra members of a table's row; its docstring is the help."""

    def make(shown: Callable[[Any, Any], Row]) -> Callable[..., None]:
        def command(**asked: Any) -> None:  # noqa: ANN401  # typed by the options
            run(listing, shown, **asked)

        command.__doc__ = shown.__doc__
        return as_command(command, given)

    return make


def list_rows(
    listing: ListCommand,
    shown: Callable[[Row, datetime], Row],
    *,
    number: int | None = None,
    limit: int | None,
    columns: str | None,
    wide: bool,
    as_json: bool,
    as_ndjson: bool,
    **given: Any,  # noqa: ANN401  # filters, as the options say
) -> None:
    """Show the rows that match the filters, or the row with `number`."""
    from inbox.db.listing import every_row, read_page

    is_table = not (as_json or as_ndjson)
    if as_json and as_ndjson:
        fail("--json and --ndjson exclude each other: choose one")
    if not is_table and (columns or wide):
        fail("--wide and --columns apply to tables; JSON always has every field")
    names = listing.names(columns)
    config, database = open_database()
    engine, now = database.engine, SystemClock().now()
    if number is not None:
        _show_one(engine, *listing.one, number, is_table=is_table)
        return
    name: Any = listing.name  # never the name of a tail
    wanted = _read_conditions(name, given, config, engine, now)
    most = limit or _SHOWN
    if as_ndjson and limit is None:
        _put_each(every_row(engine, name, wanted))
        return
    width = terminal_width() if is_table and not wide and columns is None and name == "dead" else None
    page = read_page(engine, name, wanted, most) if width is None else _read_dead(engine, wanted)
    if as_ndjson:
        _put_each(page.rows)
    elif as_json:
        put_json(page.rows)
    elif width is not None and page.rows:
        _show_groups(page, given, most, width, now)
    else:
        rows = [{**row, **shown(row, now)} for row in page.rows]
        more = f"`--before {page.before}` for the next page" if page.before else f"more with `--limit {2 * most}`"
        more = f"{len(rows)} shown; {more}" if page.has_more and page.back_to is None else ""
        show(rows, names, empty=f"no {listing.noun}", more=more, wide=wide)
    for note in _explain(page, name, {**given, **wanted}, engine, now):
        say(note, style="bright_black")


def _put_each(rows: Iterable[Row]) -> None:
    for row in rows:
        put_json(row, indent=None)


def _read_dead(engine: Engine, wanted: Mapping[str, Any]) -> RowPage:
    """Read the dead letters to group."""
    from inbox.db.listing import read_page
    from relay.cli.dead import COLUMNS, MOST_GROUPED

    return read_page(engine, "dead", wanted, MOST_GROUPED, COLUMNS)


def _show_groups(page: RowPage, given: Mapping[str, Any], most: int, width: int, now: datetime) -> None:
    from relay.cli.dead import describe_groups, group_by_cause

    put(*describe_groups(group_by_cause(page.rows), given, most, width, now))
    if page.has_more:
        say(f"the latest {len(page.rows):,} are grouped; `--wide` lists more", style="bright_black")


def _explain(
    page: RowPage, listing: AnyListing, given: Mapping[str, Any], engine: Engine, now: datetime
) -> Iterator[str]:
    """Yield hints about an unknown sender's id or a cause, and about the extent of a search in payloads."""
    from inbox.db.listing import read_page
    from relay.cli.dead import MOST_GROUPED, suggest_exhausted
    from relay.filters import suggest_sender_id

    if listing == "dead" and not page.rows and given["cause"] is not None:
        wanted = {**given, "cause": "exhausted"}
        exhausted = read_page(engine, listing, wanted, MOST_GROUPED, ("last_status",)).rows
        yield from suggest_exhausted(given["cause"], exhausted)
    unknown = given.get("sender_id") if not page.rows else None
    if unknown is not None and (hint := suggest_sender_id(engine, unknown)):
        yield hint
    if given.get("body") is not None:
        yield f"{format_count(page.looked_through - page.without_payload, 'payload')} searched"
        if page.back_to is not None:
            since = format_relative(page.back_to, now)
            yield f"the search stopped at event {page.before} of {since}; `--before {page.before}` continues it"
        if page.without_payload:
            yield f"retention or an erasure has deleted {format_count(page.without_payload, 'more payload')}"


def _read_conditions(
    listing: Filtered, given: dict[str, Any], config: Config, engine: Engine, now: datetime
) -> dict[str, Any]:
    """Return the conditions of a listing; exit with 2 if a filter has an unknown value."""
    from relay.filters import list_unknown, make_conditions

    if "entity" in given:
        given["entity_type"], given["entity_id"] = parse_entity(given.pop("entity"), may_be_a_type=True)
    for _, sentence in list_unknown(listing, given, config, engine):
        fail(sentence)
    return make_conditions(given, config, now)


def _show_one(engine: Engine, of: str, noun: str, number: int, *, is_table: bool) -> None:
    from inbox.db.reads import read_row

    row = read_row(engine, of, number)
    if row is None:
        fail(f"there is no {noun} {number}", FINDING)
    if not is_table:
        put_json(row)
        return
    if len(row.get("body") or b"") > _EXCERPT:
        row["body"] = row["body"][:_EXCERPT] + b" \xe2\x80\xa6"
    show_fields(row)


@_command(
    list_rows,
    ListCommand(
        "deliveries",
        "events",
        "seq state entity route received_at due_at event_type attempts last_status source action occurred_at lane last_fact"
        " last_fact_at relay_node superseded_by last_error",
    ),
    {
        **_ABOUT,
        **options.conditions(Selection, "seq"),
        "sender_id": option(
            str, "sender_id", "The event with this id from its sender, such as GitHub's delivery GUID."
        ),
        "body": option(str, "body", "Only events whose payload contains this text, as written or escaped in JSON."),
        "state": option(str, "state", "Only deliveries in this state, such as dead, ready or delivered."),
        "command": option(int, "command", "Only deliveries that this command has changed.", min=0),
        "before": _BEFORE,
        **_OF_LISTS,
    },
)
def list_events(row: Row, now: datetime) -> Row:
    """List events, newest first, with a line for each route. A page may have slightly more lines than --limit.

    `--state open` lists deliveries that have neither ended nor died.
    The table and --state say `retrying` for a ready delivery that waits for its next attempt after a failure, and `blocked`
    for a dead one that blocks its lane. `relay dead` lists both kinds of dead letters.

    --body searches the newest payloads first. It stops after --limit lines, 10,000 payloads or 10 s, and reports how
    far it got, and how many payloads retention or an erasure has deleted. --since and --until limit the search to a
    time; --ndjson without --limit searches everything.

    Examples:
      inbox list --sender-id 72d3162e-cc78-11e3-81ab-4c9367dc0958
      inbox list --body anna@example.com --since 2d
      inbox list --entity USER/IDNUMBER1234
      inbox list --state dead --since 2d
      inbox list --route user-to-crm --status 503 --columns seq,entity,due,error
      inbox list --source trivore --ndjson
    """
    return {"state": describe_state(row, now)}


@_command(
    list_rows,
    ListCommand(
        "rejected",
        "rejected requests",
        "id received_at source status cause readmit remote_address field readmitted_at readmitted_by readmit_reason reason",
        ("rejected_request", "rejected request"),
    ),
    {
        "number": option(int, "id", "Show this request with every field."),
        **_REQUEST,
        "before": _BEFORE,
        **_OF_LISTS,
    },
)
def list_rejected(row: Row, _now: datetime) -> Row:
    """List rejected requests, newest first, and whether they can be readmitted.

    With --id, shows one of them with the beginning of its body; exits with 1 when it does not exist.

    Examples:
      inbox rejected --source trivore --cause invalid_event
      inbox rejected --id 7
      inbox rejected --since 2d --error "is not JSON" --json
    """
    if row["readmitted_seq"] is not None:
        return {"readmit": f"is seq {row['readmitted_seq']}"}
    return {"readmit": "no" if row["body"] is None else "yes"}


@_command(
    list_rows,
    ListCommand(
        "commands",
        "commands",
        "id asked_at kind about state affected asked_by reason failed matched error finished_at progress_seq answer",
        ("relay_command", "command"),
    ),
    {
        "number": Annotated[
            int | None, typer.Argument(metavar="[ID]", help="Show this command with every field.", **options.NUMBER)
        ],
        "state": option(str, "state", "Only commands in this state, such as running or refused."),
        "kind": option(str, "kind", "Only commands of this kind, such as replay."),
        "before": _BEFORE,
        **_OF_LISTS,
    },
)
def list_commands(row: Row, _now: datetime) -> Row:
    """List operators' commands, newest first, with their authors, times, reasons and results.

    With an id, shows one of them, with the sample of a dry run; exits with 1 when it does not exist.

    Examples:
      inbox commands
      inbox commands 7
      inbox commands --state running --json
      inbox commands --kind replay --since 2d
    """
    kind = f"{row['kind']} (dry run)" if row["dry_run"] else row["kind"]
    return {"kind": kind, "about": " ".join(f"{key}={value}" for key, value in row["selection"].items())}


@_command(
    list_rows,
    ListCommand(
        "dead",
        "dead letters",
        "seq entity route state died_at cause last_status event_type attempts source received_at occurred_at action lane error",
    ),
    {
        **_ABOUT,
        "cause": option(str, "cause", "Only dead letters of this cause, such as exhausted or mapping."),
        **_OF_LISTS,
    },
)
def list_dead(_row: Row, _now: datetime) -> Row:
    """List dead letters, the latest first. --since and --until refer to the time of death.

    On a terminal, groups them by cause and route, the largest group first, and suggests the next commands; --wide,
    --columns and JSON list them one by one. A failure that is retried until its schedule ends, such as server_error, has
    the cause exhausted.

    Examples:
      relay dead --cause mapping
      relay dead --destination crm --status 422 --since 2d
      relay dead --error "no value" --ndjson
    """
    return {}


# --- listings that follow new rows

_LOOK_EVERY_SECONDS = 0.5
_END = option(bool, "end", "Stop after the newest row instead of following; without --since, begin with the oldest.")
_OF_TAILS = {"since": options.Since, "end": _END, **_OUTPUT}
_ROOMS = {"at": 9, "received_at": 11, "kind": 14, "seq": 6, "number": 6, "source": 16, "route": 16, "entity": 24,
          "event_type": 16}  # fmt: skip
"""Cells of columns whose values are not yet known."""


def follow_rows(
    listing: ListCommand,
    shown: Callable[[str, Row], Row],
    *,
    since: datetime | None,
    end: bool,
    wide: bool,
    as_ndjson: bool,
    **given: Any,  # noqa: ANN401  # filters, as the options say
) -> None:
    """Show each new row that matches the filters."""
    from relay.filters import admits

    names, is_first, is_live = listing.names(), True, terminal_width() is not None and not wide
    if as_ndjson and wide:
        fail("--wide applies to tables; JSON always has every field")
    with contextlib.suppress(KeyboardInterrupt):
        config, database = open_database()
        wanted = _read_conditions(listing.name, given, config, database.engine, SystemClock().now())
        for feed, row in follow(database.engine, _feeds(listing.name, wanted), since, ends=end):
            named = {"kind": feed.name, **row}  # a fact has its own kind
            if not admits(wanted, named):
                continue
            if as_ndjson:
                put_json(named if listing.name == "arrivals" else row, indent=None)
                continue
            seen = {**named, **shown(feed.name, row)}
            if is_live:
                seen[names[0]] = format_time_of_day(row[feed.time], SystemClock().now())
            put(*table([seen], names, _ROOMS)[0 if is_first else 1 :])
            is_first = False


def _feeds(listing: Filtered, wanted: Mapping[str, Any]) -> list[Feed]:
    """Return the feeds whose rows can match the conditions."""
    from inbox.db.following import ARRIVALS, REJECTIONS
    from relay.store.reads import OUTCOMES

    if listing == "facts":
        return [OUTCOMES]
    of_events = any(wanted[name] is not None for name in ("routes", "entity_type", "entity_id", "event_type"))
    feeds = (() if wanted["cause"] is not None else (ARRIVALS,)) + (() if of_events else (REJECTIONS,))
    return [feed for feed in feeds if wanted["kind"] in {None, feed.name}]


def follow(
    database: Engine, feeds: Sequence[Feed], since: datetime | None, *, ends: bool = False
) -> Iterator[tuple[Feed, Row]]:
    """Yield each new row of the feeds once, forever; with `ends`, only the existing rows.

    If the database goes away, it reports that once, waits, and continues from the last row.
    """
    from inbox.db.following import begin

    begins = datetime.fromtimestamp(0, UTC) if ends and since is None else since
    with database.connect() as connection:
        followers = [begin(connection, feed, begins) for feed in feeds]
    if not ends:
        say("following; press Ctrl-C to stop", style="bright_black")
    trouble = ""
    while True:
        before, (rows, trouble) = trouble, _look(database, followers)
        if trouble and not before:
            say(f"the database does not answer ({trouble}): waiting for it", style="yellow")
        if before and not trouble:
            say("the database answers again", style="green")
        yield from sorted(rows, key=lambda each: each[1][each[0].time]) if len(feeds) > 1 else rows
        if trouble or not any(follower.is_behind for follower in followers):
            if ends and not trouble:
                return
            wait_for_more()


def _look(database: Engine, followers: Sequence[Follower]) -> tuple[list[tuple[Feed, Row]], str]:
    """Return a page of each feed, and the error if the database does not respond. Rows are never read twice."""
    from inbox.db.dialect import classify_failure, trouble_text

    rows: list[tuple[Feed, Row]] = []
    try:
        with database.connect() as connection:
            for follower in followers:
                rows += ((follower.feed, row) for row in follower.read(connection))
    except Exception as error:
        if classify_failure(error) == "fault":
            raise
        return rows, trouble_text(error)
    return rows, ""


def wait_for_more() -> None:
    """Pause when all rows have been read, or the database does not respond."""
    time.sleep(_LOOK_EVERY_SECONDS)


@_command(
    follow_rows,
    ListCommand("arrivals", "arrivals", "received_at kind number source entity what"),
    {
        **{name: _ABOUT[name] for name in ("source", "route", "entity", "event_type")},
        "kind": option(str, "kind", "Only arrived (events) or only rejected (requests)."),
        "cause": _REQUEST["cause"],
        **_OF_TAILS,
    },
)
def follow_arrivals(feed: str, row: Row) -> Row:
    """Follow new events and rejected requests until Ctrl-C. With --since, begin at that time.

    Rejected requests have no route, entity or event type, so these options exclude them; --cause shows only them. When
    the database goes away, it waits, then continues where it stopped.

    With --end and --ndjson it is an export: each event once, in order of seq. `relay tail` exports the facts.

    Examples:
      inbox tail
      inbox tail --source trivore --since 15m
      inbox tail --kind rejected --cause invalid_signature
      inbox tail --route user-to-crm --ndjson
      inbox tail --kind arrived --since 2026-01-01 --end --ndjson > events.ndjson
    """
    if feed == "rejected":
        return {"number": row["id"], "what": f"{row['status']} {row['cause']}: {row['reason']}"}
    return {"number": row["seq"], "what": f"{row['event_type']} → {', '.join(row['routes']) or 'no route'}"}


@_command(
    follow_rows,
    ListCommand("facts", "facts", "at kind seq route entity attempt event_type what"),
    {
        **_ABOUT,
        "kind": option(str, "kind", "Only facts of this kind, such as delivered, attempt_failed or dead."),
        "cause": option(str, "cause", "Only failures of this cause, such as server_error."),
        **_OF_TAILS,
    },
)
def follow_facts(_feed: str, row: Row) -> Row:
    """Follow the outcomes of deliveries until Ctrl-C. With --since, begin at that time.

    When the database goes away, it waits, then continues where it stopped.

    Examples:
      relay tail
      relay tail --route user-to-crm --kind attempt_failed
      relay tail --destination crm --since 15m
      relay tail --cause server_error --ndjson
      relay tail --since 2026-01-01 --end --ndjson > facts.ndjson
    """
    return {"what": put_in_words(row["kind"], row["attempt"], row["detail"])[0]}


OF_INBOX = {"list": list_events, "tail": follow_arrivals, "commands": list_commands, "rejected": list_rejected}
OF_RELAY = {"dead": list_dead, "tail": follow_facts}
"""The listing commands of each command line, by name."""
