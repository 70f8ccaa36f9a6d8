"""Reads the deliveries that a selection means: counts, pages, and membership."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import TextClause

from inbox.db.dialect import blames_items, rows_param
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.store.database import Database
from relay.store.operator import selected_statements as statements
from relay.store.operator.selection import Choice, Which
from relay.store.transaction import Key, Transaction


def groups(transaction: Transaction, choice: Choice) -> list[Any]:
    """The number of selected open deliveries of each route, state and cause, and when their next attempts are due."""
    return transaction.execute(
        statements.grouped(transaction.sql, choice.which, choice.names_seqs), **choice.parameters(choice.which)
    )


def count(transaction: Transaction, choice: Choice, which: Which) -> int:
    """The number of deliveries of this kind that meet the conditions, whatever the act is about."""
    return int(
        transaction.execute(statements.counted(transaction.sql, which, choice.names_seqs), **choice.parameters(which))[
            0
        ].count
    )


def wait_until(transaction: Transaction, choice: Choice) -> tuple[int, datetime | None]:
    """The number of attempts that wait, and when the last one is due."""
    (found,) = transaction.execute(
        statements.waiting(transaction.sql, choice.names_seqs), **choice.parameters("due later")
    )
    return int(found.count), None if found.last_due_at is None else as_time(found.last_due_at)


class SelectedPage(msgspec.Struct, frozen=True):
    """The next selected deliveries, in the order of their keys."""

    rows: Sequence[Row]
    """All columns; of one that can't be looked up seq and route alone."""
    unreadable: Mapping[Key, Exception] = {}
    """Deliveries that can't be looked up, so that nobody knows whether they are selected."""
    upto: int | None = None
    """The seq beyond which to go on; None at the end."""


def page(
    database: Database, choice: Choice, *, after: int, most: int, is_late: Callable[[], bool] = lambda: False
) -> SelectedPage:
    """The deliveries of the first events beyond the seq `after`: about `most`, whole events only, and none of a later event.

    Open ones are found by their key, some in each transaction, and then looked up: however many are selected, each reads few.
    After many candidates of which none is selected, the page is empty, and `upto` says where to go on. So it does when
    `is_late` says that the time is over.
    """
    found = _page(database, choice, after=after, most=most, is_late=is_late)
    until = choice.until_seq
    if until is None or (found.upto is not None and found.upto < until):
        return found
    rows = [row for row in found.rows if row["seq"] <= until]
    return SelectedPage(rows, {key: error for key, error in found.unreadable.items() if key[0] <= until})


def _page(database: Database, choice: Choice, *, after: int, most: int, is_late: Callable[[], bool]) -> SelectedPage:
    if choice.which == "ended or dead":
        return _page_of_events(database, choice, after, most)
    if choice.which == "backfill":
        return _page_of_backfill(database, choice, after, most, is_late)
    found: list[Row] = []
    unreadable: dict[Key, Exception] = {}
    for _ in range(_MOST_LOOK_UPS):
        with database.read() as transaction:
            keys = candidates(transaction, choice, after=after, most=max(most, _CANDIDATES))
        if not keys:
            return SelectedPage(found, unreadable, int(found[-1]["seq"]) if found else None)
        rows, failed = _look_up_each(database, choice, keys)
        found += rows
        unreadable |= failed
        if len(found) > most:
            cut = found[most]["seq"]
            found = [row for row in found if row["seq"] < cut] or [row for row in found if row["seq"] == cut]
            kept = {(row["seq"], row["route"]) for row in found}
            return SelectedPage(
                found, {key: unreadable[key] for key in unreadable.keys() & kept}, int(found[-1]["seq"])
            )
        after = keys[-1][0]
        if len(found) == most or is_late():
            break
    return SelectedPage(found, unreadable, after)


def _page_of_events(database: Database, choice: Choice, after: int, most: int) -> SelectedPage:
    """Find events by their seq or entity, and then look their deliveries up: the view has no condition that may be left out."""
    with database.read() as transaction:
        given = {name: value for name, value in choice.parameters(choice.which).items() if value is not None}
        found = transaction.execute(
            statements.events(transaction.sql, tuple(sorted(given.keys() & statements.OF_EVENTS))),
            **{name: value for name, value in given.items() if name in statements.OF_EVENTS},
            after=after,
            most=most,
        )
        seqs = [int(row.seq) for row in found]
        rows = _of_events(transaction, choice, seqs)
    return SelectedPage(rows, upto=seqs[-1] if len(seqs) == most else None)


def _page_of_backfill(
    database: Database, choice: Choice, after: int, most: int, is_late: Callable[[], bool]
) -> SelectedPage:
    """Look through the events of the route's source: all where it has few, else some in each transaction."""
    source = {"of_source": choice.parameters("backfill")["of_source"]}
    found: list[Row] = []
    for _ in range(_MOST_LOOK_UPS):
        with database.read() as transaction:
            few = [int(row.seq) for row in transaction.execute(statements.FEW_OF_SOURCE, **source, most=_FEW + 1)]
            if len(few) <= _FEW:
                seqs = sorted(seq for seq in few if seq > after)[:most]
                upto = seqs[-1] if len(seqs) == most else None
            else:
                seqs = [
                    int(row.seq)
                    for row in transaction.execute(statements.NEXT_OF_SOURCE, **source, after=after, most=most)
                ]
                upto = (
                    seqs[-1] if len(seqs) == most else transaction.execute(statements.END_OF_WINDOW, after=after)[0].seq
                )
            wanted = rows_param({"seq": seq} for seq in seqs)
            found += transaction.rows_of(
                statements.backfilled(transaction.sql, choice.names_seqs),
                **choice.parameters("backfill"),
                wanted=wanted,
            )
        if upto is None:
            return SelectedPage(found)
        after = int(upto)
        if len(found) >= most or is_late():
            break
    return SelectedPage(found, upto=after)


def _of_events(transaction: Transaction, choice: Choice, seqs: Sequence[int]) -> list[Row]:
    """Read the selected deliveries of these events, ended or dead ones."""
    statement, known = statements.ended_of_events(transaction.sql, choice.names_seqs), choice.parameters(choice.which)
    if transaction.sql.has_lateral:
        return transaction.rows_of(statement, **known, wanted=rows_param({"seq": seq} for seq in seqs))
    return [row for seq in seqs for row in transaction.rows_of(statement, **known, wanted=seq)]


def _look_up_each(database: Database, choice: Choice, keys: Sequence[Key]) -> tuple[list[Row], dict[Key, Exception]]:
    """Look up these together; where one of them can't be, one by one, so that it stops no other."""
    try:
        with database.read() as transaction:
            return look_up(transaction, choice, keys), {}
    except Exception as error:
        if not blames_items(error):
            raise
    rows: list[Row] = []
    failed: dict[Key, Exception] = {}
    for key in keys:
        try:
            with database.read() as transaction:
                rows += look_up(transaction, choice, [key])
        except Exception as error:
            if not blames_items(error):
                raise
            rows.append({"seq": key[0], "route": key[1]})
            failed[key] = error
    return rows, failed


def candidates(transaction: Transaction, choice: Choice, *, after: int, most: int) -> list[Key]:
    """The keys beyond the seq `after` among which the selected open deliveries are: about `most`, whole events only."""
    known = choice.parameters(choice.which)
    given: dict[str, object] = {
        name: known[name] for name in ("route", "seq", "seqs", "deliveries", "state", "routes") if name in known
    }
    rows = _whole_events(
        statements.candidates(transaction.sql, choice.which, choice.names_seqs), transaction, given, after, most
    )
    return [(int(row["seq"]), str(row["route"])) for row in rows]


def look_up(transaction: Transaction, choice: Choice, keys: Iterable[Key]) -> list[Row]:
    """The open deliveries among these that are selected."""
    wanted = rows_param({"seq": seq, "route": route} for seq, route in keys)
    statement = statements.looked_up(transaction.sql, choice.which, choice.names_seqs)
    return transaction.rows_of(statement, **choice.parameters(choice.which), wanted=wanted)


def _whole_events(
    statement: TextClause, transaction: Transaction, given: dict[str, object], after: int, most: int
) -> list[Row]:
    rows = transaction.rows_of(statement, **given, after=after, most=most + 1)
    if len(rows) <= most:
        return rows
    whole = [row for row in rows if row["seq"] != rows[-1]["seq"]]
    return whole or _whole_events(statement, transaction, given, after, 2 * most)


def still_to_come(transaction: Transaction, choice: Choice, first: int, keys: Iterable[Key]) -> set[Key]:
    """The selected ones among these that the batch which begins with the event `first`, or a later one, has.

    An earlier batch has taken up the others: perhaps they are delivered by now, and won't come last.
    """
    return among(transaction, choice, {key for key in keys if key[0] >= first})


def among(transaction: Transaction, choice: Choice, keys: Iterable[Key]) -> set[Key]:
    """The deliveries among these that are selected, too."""
    seqs = sorted({seq for seq, _ in keys if choice.until_seq is None or seq <= choice.until_seq})
    if choice.which == "ended or dead":
        return {(int(row["seq"]), str(row["route"])) for row in _of_events(transaction, choice, seqs)}
    wanted = rows_param({"seq": seq} for seq in seqs)
    found = transaction.execute(
        statements.among(transaction.sql, choice.which, choice.names_seqs),
        **choice.parameters(choice.which),
        wanted=wanted,
    )
    return {(row.seq, row.route) for row in found}


OF_WORK_TABLE: frozenset[Which] = frozenset({"dead", "not begun", "blocked", "due later"})
"""Kinds of deliveries that have a row in `open_delivery`."""
_CANDIDATES = 200
"""The fewest keys that are looked up together."""
_MOST_LOOK_UPS = 50
"""Consecutive look-ups of one page: whoever asked has other work, too."""
_FEW = 2000
"""Events of a source that are looked through at once."""
