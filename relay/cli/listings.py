"""Every command that lists rows, from one table: `inbox list`, `rejected` and `commands`, and `relay dead`; and both tails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from inbox.clock import SystemClock
from relay.cli import options
from relay.cli.command_line import as_command
from relay.cli.options import open_database, option, parse_entity
from relay.cli.tables import Column, Format, Rolling, format_of, show
from relay.cli.terminal import FINDING, exit_on_error, fail, say, show_fields
from relay.words import counted, lasting, shown_state

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.config.model import Config
    from inbox.db.following import Feed, Follower
    from inbox.db.reads import Row
    from relay.filters import Filtered

_ABOUT = {
    "source": options.OfSource,
    "route": options.OfRoute,
    "destination": options.OfDestination,
    "entity": options.OfEntity,
    "event_type": options.OfEventType,
}
_TIMES = {"since": options.Since, "until": options.Until}
_OUTPUT = {"limit": options.Limit, "wide": options.Wide, "columns": options.Columns, "as_json": options.AsJson,
           "as_ndjson": options.AsNdjson}  # fmt: skip


class ListCommand(msgspec.Struct, frozen=True):
    """The rows that a command lists, the newest first."""

    listing: Literal["deliveries", "dead", "rejected", "commands"]
    options: Mapping[str, Any]
    """Filters and the rest of its options, by their names."""
    columns: tuple[Column, ...]
    noun: str
    """The rows, such as `events`."""
    shown: Callable[[Row, datetime], Row] = lambda _row, _now: {}
    """Makes members that only the table has."""
    one: tuple[str, str] = ("", "")
    """The table of which an option `number` names a row, and the noun for it."""


def _shown_rejection(row: Row, _now: datetime) -> Row:
    """Say whether it can be readmitted, or which event it became."""
    became = "no" if row["body"] is None else "yes"
    return {"readmission": became if row["readmitted_seq"] is None else f"is seq {row['readmitted_seq']}"}


def _shown_command(row: Row, _now: datetime) -> Row:
    kind = f"{row['kind']} (dry run)" if row["dry_run"] else row["kind"]
    return {"kind": kind, "about": " ".join(f"{key}={value}" for key, value in row["selection"].items())}


LISTED: Mapping[str, ListCommand] = {
    "list": ListCommand(
        "deliveries",
        {
            **_ABOUT,
            "state": option(str, "--state", text="Only in this state, such as dead, ready or delivered."),
            "error": options.OfError,
            "status": options.OfStatus,
            **_TIMES,
            "before": options.Before,
            **_OUTPUT,
        },
        (
            Column("seq", "number"),
            Column("state", "state"),
            Column("entity", "entity"),
            Column("route"),
            Column("last_error", heading="error", last=True),
            Column("received_at", "time", "received"),
            Column("due_at", "time", "due"),
            Column("event_type"),
            Column("attempts", "number"),
            Column("last_status", "number", "status"),
            Column("source"),
            Column("action", on_request=True),
            Column("occurred_at", "time", "occurred", on_request=True),
            Column("lane", on_request=True),
            Column("last_fact", on_request=True),
            Column("last_fact_at", "time", on_request=True),
            Column("relay_node", on_request=True),
            Column("superseded_by", "number", on_request=True),
        ),
        "events",
        lambda row, now: {"state": shown_state(row, now)},
    ),
    "rejected": ListCommand(
        "rejected",
        {
            "number": option(int, "--id", text="This one, with everything that was kept of it.", **options.NUMBER),
            "source": options.RejectedSource,
            "cause": options.RejectedCause,
            "status": options.RejectedStatus,
            "error": options.RejectedError,
            **_TIMES,
            "before": options.Before,
            **_OUTPUT,
        },
        (
            Column("id", "number"),
            Column("received_at", "time", "received"),
            Column("source"),
            Column("status", "number"),
            Column("cause"),
            Column("reason", last=True),
            Column("readmission", heading="readmit"),
            Column("remote_address"),
            Column("field", on_request=True),
            Column("readmitted_at", "time", on_request=True),
            Column("readmitted_by", on_request=True),
            Column("readmit_reason", on_request=True),
        ),
        "rejected requests",
        _shown_rejection,
        ("rejected_request", "rejected request"),
    ),
    "commands": ListCommand(
        "commands",
        {
            "number": Annotated[
                int | None, typer.Argument(metavar="[ID]", help="This one, with every field.", **options.NUMBER)
            ],
            "state": option(str, "--state", text="Only in this state, such as running or refused."),
            "kind": option(str, "--kind", text="Only of this kind, such as replay."),
            **_TIMES,
            "before": options.Before,
            **_OUTPUT,
        },
        (
            Column("id", "number"),
            Column("asked_at", "time", "asked"),
            Column("kind"),
            Column("about"),
            Column("state", "state"),
            Column("affected", "number"),
            Column("answer", last=True),
            Column("asked_by", heading="by"),
            Column("reason"),
            Column("failed", "number", on_request=True),
            Column("matched", "number", on_request=True),
            Column("error", on_request=True),
            Column("finished_at", "time", "finished", on_request=True),
            Column("progress_seq", "number", on_request=True),
        ),
        "commands",
        _shown_command,
        ("relay_command", "command"),
    ),
    "dead": ListCommand(
        "dead",
        {
            **_ABOUT,
            "cause": option(str, "--cause", text="Only of this cause, such as exhausted or mapping."),
            "status": options.OfStatus,
            "error": options.OfError,
            **_TIMES,
            **_OUTPUT,
        },
        (
            Column("seq", "number"),
            Column("entity", "entity"),
            Column("error", last=True),
            Column("route"),
            Column("state", "state"),
            Column("died_at", "time", "died"),
            Column("cause"),
            Column("last_status", "number", "status"),
            Column("event_type"),
            Column("attempts", "number"),
            Column("source"),
            Column("received_at", "time", "received", on_request=True),
            Column("occurred_at", "time", "occurred", on_request=True),
            Column("action", on_request=True),
            Column("lane", on_request=True),
        ),
        "dead letters",
    ),
}  # fmt: skip


def list_rows(listed: ListCommand, *, number: int | None = None, limit: int | None, **given: Any) -> None:  # noqa: ANN401  # as the options say
    """Show the rows that meet the filters, or the one of a number."""
    from inbox.db.listing import every_row, read_page

    form = _form(listed.columns, given)
    with exit_on_error():
        config, database = open_database()
        engine = database.engine
        if number is not None:
            _show_one(engine, *listed.one, number, form)
            return
        now = SystemClock().now()
        wanted = _wanted(listed.listing, given, config, engine, now)
        most = form.most(limit)
        if most is None:
            show(every_row(engine, listed.listing, wanted), listed.columns, form, empty="")
            return
        page = read_page(engine, listed.listing, wanted, most)
        blocked = {**wanted, "state": "blocked"}
        if form.is_table and given.get("state") == "dead" and read_page(engine, "deliveries", blocked, 1).rows:
            say("dead ones that block their lane are apart: `--state blocked`; `relay dead` lists both")
    rows = [{**row, **listed.shown(row, now)} for row in page.rows] if form.is_table else page.rows
    more = f"`--before {page.before}` for the next page" if page.before else f"more with `--limit {2 * most}`"
    more = f"{len(rows)} shown; {more}" if page.has_more else ""
    show(rows, listed.columns, form, empty=f"no {listed.noun}", more=more)


def _form(columns: tuple[Column, ...], given: dict[str, Any]) -> Format:
    """Take the options of the output out of the given ones."""
    asked = {name: given.pop(name) for name in ("as_json", "as_ndjson", "wide") if name in given}
    return format_of(columns, **asked, names=given.pop("columns", None))


def _wanted(listing: Filtered, given: dict[str, Any], config: Config, engine: Engine, now: datetime) -> dict[str, Any]:
    """Return the conditions of a listing; exit with 2 when a filter names nothing."""
    from relay.filters import conditions, unknown

    if "entity" in given:
        given["entity_type"], given["entity_id"] = parse_entity(given.pop("entity"), may_be_a_type=True)
    for _, sentence in unknown(listing, given, config, engine):
        fail(sentence)
    return conditions(given, config, now)


_EXCERPT = 4096
"""Bytes of a body that are shown."""


def _show_one(engine: Engine, table: str, noun: str, number: int, form: Format) -> None:
    from inbox.db.reads import row_of

    row = row_of(engine, table, number)
    if row is None:
        say(f"there is no {noun} {number}")
        raise typer.Exit(FINDING)
    if form.is_table and len(row.get("body") or b"") > _EXCERPT:
        row["body"] = row["body"][:_EXCERPT] + b" \xe2\x80\xa6"
    show_fields(row, as_json=not form.is_table)


# --- tails: listings that go on

_LOOK_EVERY_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 1.0
"""The pause between two attempts to reach the database."""
_FOLLOWING = {"since": options.Since, "end": options.End, "wide": options.Wide, "as_ndjson": options.AsNdjson}


class TailCommand(msgspec.Struct, frozen=True):
    """The rows that a command follows as they come."""

    listing: Literal["arrivals", "facts"]
    options: Mapping[str, Any]
    columns: tuple[Column, ...]
    shown: Callable[[str, Row], Row]
    """Makes members that only the table has, by the name of the feed and the row."""


def _shown_arrival(kind: str, row: Row) -> Row:
    if kind == "rejected":
        return {"number": row["id"], "what": f"{row['status']} {row['cause']}: {row['reason']}"}
    return {"number": row["seq"], "what": f"{row['event_type']} → {', '.join(row['routes']) or 'no route'}"}


def _shown_fact(_kind: str, row: Row) -> Row:
    """Return the rest of a fact in a few words: what was done, or why not."""
    detail = row["detail"]
    calls = detail.get("calls") or []
    if "error" in detail:
        what = f"{detail.get('cause') or detail.get('error_class')}: {detail['error']}"
    elif "why" in detail:
        what = f"{detail['who']}: {detail['why']}" if "who" in detail else str(detail["why"])
    elif "by" in detail:
        what = f"by event {detail['by']}"
    else:
        took = lasting(sum(call.get("milliseconds", 0) for call in calls) / 1000)
        made = f"{counted(len(calls), 'call')}, {took}" if calls else ""
        what = ", ".join(filter(None, (str(detail.get("did", "")).replace("_", " "), made)))
    return {"what": what}


FOLLOWED: Mapping[str, TailCommand] = {
    "inbox": TailCommand(
        "arrivals",
        {
            **{name: each for name, each in _ABOUT.items() if name != "destination"},
            "kind": option(str, "--kind", text="Only these: arrived (events) or rejected (requests)."),
            "cause": options.RejectedCause,
            **_FOLLOWING,
        },
        (
            Column("received_at", "time", "at"),
            Column("kind", "state"),
            Column("number", "number"),
            Column("source"),
            Column("what", last=True),
            Column("entity", "entity"),
        ),
        _shown_arrival,
    ),
    "relay": TailCommand(
        "facts",
        {
            **_ABOUT,
            "kind": option(str, "--kind", text="Only facts of this kind, such as delivered, attempt_failed or dead."),
            "cause": option(str, "--cause", text="Only deaths and failures of this cause, such as server_error."),
            "status": options.OfStatus,
            "error": options.OfError,
            **_FOLLOWING,
        },
        (
            Column("at", "time"),
            Column("kind", "state"),
            Column("seq", "number"),
            Column("what", last=True),
            Column("route"),
            Column("entity", "entity"),
            Column("attempt", "number"),
            Column("event_type", heading="event type"),
        ),
        _shown_fact,
    ),
}


def follow_rows(followed: TailCommand, *, since: datetime | None, end: bool, **given: Any) -> None:  # noqa: ANN401  # as the options say
    """Show each row that comes and meets the filters."""
    from relay.filters import admits

    form = _form(followed.columns, given)
    with exit_on_error(), until_interrupted():
        config, database = open_database()
        wanted = _wanted(followed.listing, given, config, database.engine, SystemClock().now())
        out = Rolling(followed.columns, form)
        for feed, row in follow(database.engine, _feeds(followed.listing, wanted), since, ends=end):
            named = {"kind": feed.name, **row}  # a fact has a kind of its own
            if admits(wanted, named):
                out.add(named if followed.listing == "arrivals" else row, shown=followed.shown(feed.name, row))


def _feeds(listing: Filtered, wanted: Mapping[str, Any]) -> list[Feed]:
    """Return the feeds that may have such rows."""
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
    """Yield each new row of the feeds once, without end; with `ends`, only those that are there.

    It survives a database that goes away: it says so once, waits, and goes on where it was.
    """
    from inbox.db.following import begin

    begins = datetime.fromtimestamp(0, UTC) if ends and since is None else since
    with database.connect() as connection:
        followers = [begin(connection, feed, begins) for feed in feeds]
    if not ends:
        say("following; Ctrl-C ends it", style="bright_black")
    while True:
        rows: list[tuple[Feed, Row]] = []
        while_reachable(partial(_look, database, followers, rows))
        yield from sorted(rows, key=lambda each: each[1][each[0].time]) if len(feeds) > 1 else rows
        if not any(follower.is_behind for follower in followers):
            if ends:
                return
            wait_for_more()


def wait_for_more() -> None:
    """Pause between two looks, when all that is there has been read."""
    time.sleep(_LOOK_EVERY_SECONDS)


def _look(database: Engine, followers: Sequence[Follower], rows: list[tuple[Feed, Row]]) -> None:
    """Add a page of each feed to `rows`. What was read before a failure stays there, as it is not read again."""
    with database.connect() as connection:
        for follower in followers:
            rows += ((follower.feed, row) for row in follower.read(connection))


def while_reachable(look: Callable[[], None]) -> None:
    """Look, again and again while the database can't be reached."""
    from inbox.db.dialect import failure_of, trouble_text

    is_away = False
    while True:
        try:
            look()
        except Exception as error:
            if failure_of(error) == "fault":
                raise
            if not is_away:
                say(f"the database does not answer ({trouble_text(error)}): waiting for it", style="yellow")
            is_away = True
            time.sleep(_LOOK_AGAIN_SECONDS)
        else:
            if is_away:
                say("the database answers again", style="green")
            return


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """Let Ctrl-C end a command that runs without end: it has done what was asked for."""
    with contextlib.suppress(KeyboardInterrupt):
        yield


def list_events(**given: Any) -> None:  # noqa: ANN401  # as the options say
    """List events, the newest first: one line for each route an event takes. A page may have a few lines more than --limit.

    A ready delivery that waits for its next attempt, after a failure, is `retrying` in the table and for --state.

    Examples:
      inbox list --entity USER/IDNUMBER1234
      inbox list --state dead --since 2d
      inbox list --route user-to-crm --status 503 --columns seq,entity,due,error
      inbox list --source trivore --ndjson
    """
    list_rows(LISTED["list"], **given)


def list_rejected(**given: Any) -> None:  # noqa: ANN401  # as the options say
    """List rejected requests, the newest first, and whether they can be readmitted.

    With --id: one of them, and the beginning of its body; exits 1 when there is none of that number.

    Examples:
      inbox rejected --source trivore --cause invalid_event
      inbox rejected --id 7
      inbox rejected --since 2d --error "is not JSON" --json
    """
    list_rows(LISTED["rejected"], **given)


def list_commands(**given: Any) -> None:  # noqa: ANN401  # as the options say
    """List commands of operators, the newest first: who asked, when and why, and the answers.

    With an id: one of them, and the sample of a dry run; exits 1 when there is none of that number.

    Examples:
      inbox commands
      inbox commands 7
      inbox commands --state running --json
      inbox commands --kind replay --since 2d
    """
    list_rows(LISTED["commands"], **given)


def list_dead(**given: Any) -> None:  # noqa: ANN401  # as the options say
    """List deliveries that were given up, the newest death first; --since and --until are times of their deaths.

    `inbox show SEQ` shows the whole history of one; `relay replay` replays them.

    Examples:
      relay dead --cause mapping
      relay dead --destination crm --status 422 --since 2d
      relay dead --error "no value" --ndjson
    """
    list_rows(LISTED["dead"], **given)


def follow_arrivals(**given: Any) -> None:  # noqa: ANN401  # as the options say
    """Follow arrivals and rejected requests as they come, until Ctrl-C. With --since, begin with those since then.

    Requests that were rejected have no route, entity and event type, so these options leave them out; --cause shows only
    them. When the database goes away, it waits for it and goes on where it was.

    With --end and --ndjson, it is an export: each event once, in order of seq. `relay tail` exports their facts.

    Examples:
      inbox tail
      inbox tail --source trivore --since 15m
      inbox tail --kind rejected --cause invalid_signature
      inbox tail --route user-to-crm --ndjson
      inbox tail --kind arrived --since 2026-01-01 --end --ndjson > events.ndjson
    """
    follow_rows(FOLLOWED["inbox"], **given)


def follow_facts(**given: Any) -> None:  # noqa: ANN401  # as the options say
    """Follow the outcomes of deliveries as they are recorded, until Ctrl-C. With --since, begin with those since then.

    When the database goes away, it waits for it and goes on where it was.

    Examples:
      relay tail
      relay tail --route user-to-crm --kind attempt_failed
      relay tail --destination crm --since 15m
      relay tail --cause server_error --ndjson
      relay tail --since 2026-01-01 --end --ndjson > facts.ndjson
    """
    follow_rows(FOLLOWED["relay"], **given)


INBOX: Mapping[str, Callable[..., None]] = {
    "list": as_command(list_events, LISTED["list"].options),
    "tail": as_command(follow_arrivals, FOLLOWED["inbox"].options),
    "commands": as_command(list_commands, LISTED["commands"].options),
    "rejected": as_command(list_rejected, LISTED["rejected"].options),
}
RELAY: Mapping[str, Callable[..., None]] = {
    "dead": as_command(list_dead, LISTED["dead"].options),
    "tail": as_command(follow_facts, FOLLOWED["relay"].options),
}
"""Commands of both command lines, by their names."""
