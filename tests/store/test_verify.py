"""`verify` finds every way in which what is stored can differ from the log, and `rebuild` mends each."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from inbox.config.model import Config
from relay.store import audit
from relay.store.transaction import Transaction
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.relaying import Steps
from tests.helpers.storing import a_fact, a_row
from tests.store.verifying import Planter, differences, findings, mend

LATER = "2026-01-02 00:00:00.000000Z"

CORRUPTIONS: dict[str, tuple[str, list[tuple[str, int | None, str | None]]]] = {
    "a routed event without a delivery": ("DELETE FROM open_delivery WHERE seq = 6", [("missing", 6, "strict")]),
    "a dead letter that is gone": ("DELETE FROM open_delivery WHERE seq = 3", [("missing", 3, "strict")]),
    "one in flight that is gone, and its lane's head with it": (
        "DELETE FROM open_delivery WHERE seq = 7",
        [("missing", 7, "strict"), ("no_head", 8, "strict")],
    ),
    "a blocked one that is gone": (
        "DELETE FROM open_delivery WHERE seq = 9",
        [("missing", 9, "blocking"), ("no_head", 10, "blocking")],
    ),
    "a missing fact that had ended it": (
        "DELETE FROM delivery_log WHERE seq = 2",
        [("missing", 2, "strict")],
    ),
    "a missing fact of a failed attempt": (
        "DELETE FROM delivery_log WHERE seq = 5",
        [("attempt", 5, "strict")],
    ),
    "a missing fact of a death": (
        "DELETE FROM delivery_log WHERE seq = 3",
        [("attempt", 3, "strict"), ("state", 3, "strict")],
    ),
    "an extra fact that ends it": (
        a_fact("skipped", 5, attempt=2, why="a slip"),
        [("ended", 5, "strict")],
    ),
    "an extra fact of an attempt": (
        a_fact("abandoned", 5, attempt=2, crashes=1, relay_node="r9"),
        [("attempt", 5, "strict"), ("crashes", 5, "strict")],
    ),
    "an extra fact that can't be": (
        a_fact("delivered", 1, attempt=1, did="forwarded"),
        [("contradiction", 1, "strict")],
    ),
    "a fact edited into a death": (
        """UPDATE delivery_log SET kind = 'dead', state = 'dead', detail = '{"cause": "exhausted", "error": "503"}'
        WHERE seq = 5""",
        [("state", 5, "strict")],
    ),
    "a fact of another kind than its state": (
        "UPDATE delivery_log SET kind = 'superseded', detail = '{\"by\": 6}' WHERE seq = 5",
        [("contradiction", 5, "strict")],
    ),
    "a fact edited so that it counts otherwise": (
        "UPDATE delivery_log SET attempt = 4 WHERE seq = 5",
        [("attempt", 5, "strict"), ("contradiction", 5, "strict")],
    ),
    "a fact of another run": (
        "UPDATE delivery_log SET run = 1 WHERE seq = 5",
        [("contradiction", 5, "strict"), ("run", 5, "strict")],
    ),
    "a fact whose next attempt was edited": (
        f"UPDATE delivery_log SET detail = '{json.dumps({'error_class': 'unknown', 'error': '', 'due_at': LATER})}' WHERE seq = 5",
        [("due_at", 5, "strict")],
    ),
    "a wrong attempt count": ("UPDATE open_delivery SET attempt = 3 WHERE seq = 5", [("attempt", 5, "strict")]),
    "a wrong count of replays": ("UPDATE open_delivery SET run = 1 WHERE seq = 8", [("run", 8, "strict")]),
    "a wrong count of abandoned attempts": (
        "UPDATE open_delivery SET crashes = 2 WHERE seq = 5",
        [("crashes", 5, "strict")],
    ),
    "a retry that is due too soon": (
        "UPDATE open_delivery SET due_at = '2026-01-01 00:00:01.000000Z' WHERE seq = 5",
        [("due_at", 5, "strict")],
    ),
    "one alive that is dead": (
        "UPDATE open_delivery SET state = 'waiting' WHERE seq = 3",
        [("no_head", 3, "strict"), ("state", 3, "strict")],
    ),
    "one dead that is alive": ("UPDATE open_delivery SET state = 'dead' WHERE seq = 8", [("state", 8, "strict")]),
    "one unblocked that blocks": (
        "UPDATE open_delivery SET state = 'dead' WHERE seq = 9",
        [("no_head", 10, "blocking"), ("state", 9, "blocking")],
    ),
    "another time than its event's": (
        f"UPDATE open_delivery SET occurred_at = '{LATER}' WHERE seq = 6",
        [("occurred_at", 6, "strict")],
    ),
    "another lane than its event's": (
        "UPDATE open_delivery SET lane = 'USER|somebody else' WHERE seq = 6",
        [("lane", 6, "strict"), ("no_head", 6, "strict")],
    ),
    "a lane without a head": (
        "UPDATE open_delivery SET state = 'waiting', due_at = NULL WHERE seq = 5",
        [("no_head", 5, "strict"), ("no_head", 6, "strict")],
    ),
    "a row of one that has ended": (a_row(1), [("ended", 1, "strict")]),
    "a row on a route that the event does not take": (a_row(1, "latest"), [("unrouted", 1, "latest")]),
    "a row of no event": (a_row(99), [("no_event", 99, "strict")]),
    "an event that is gone": (
        "DELETE FROM inbox WHERE seq = 6",
        [("no_event", 6, "strict")],
    ),
    "a lane that forgot its last delivery": (
        "DELETE FROM lane WHERE route = 'strict'",
        [("last_delivered", 1, "strict"), ("last_delivered", 2, "strict"), ("last_delivered", 4, "strict")],
    ),
}


def test_where_all_is_well_nothing_is_found_and_nothing_mended(lived_in: Steps) -> None:
    before = (lived_in.rows("SELECT * FROM open_delivery ORDER BY seq, route"), lived_in.kinds())
    assert differences(lived_in.database) == []
    assert mend(lived_in.database) == []
    assert (lived_in.rows("SELECT * FROM open_delivery ORDER BY seq, route"), lived_in.kinds()) == before


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_each_corruption_is_found_for_what_it_is_and_mended(lived_in: Steps, plant: Planter, what: str) -> None:
    statement, expected = CORRUPTIONS[what]
    plant(statement)
    assert findings(lived_in.database) == sorted(expected, key=str)

    mended = mend(lived_in.database)

    assert {found.finding for found in mended} >= {finding for finding, *_ in expected} - {"no_head", "last_delivered"}
    assert differences(lived_in.database) == []
    lived_in.facts_agree()


@ON_POSTGRES
def test_a_busy_machine_does_not_end_it(lived_in: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres would end a transaction in which it hears nothing for a while."""
    found: list[str] = []
    examine = audit.examine

    def looking(
        transaction: Transaction, seqs: Sequence[int], config: Config
    ) -> tuple[audit.Checked, list[audit.Stored]]:
        query = text("SELECT current_setting('idle_in_transaction_session_timeout')")
        found.append(transaction.connection.execute(query).scalar_one())
        return examine(transaction, seqs, config)

    monkeypatch.setattr(audit, "examine", looking)
    assert differences(lived_in.database) == []
    assert set(found) == {"1min"}
