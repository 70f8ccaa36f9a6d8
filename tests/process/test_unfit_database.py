"""A database that doesn't let the guarantees be kept: neither side starts, and both say what to do. Looking is still possible."""

from __future__ import annotations

import contextlib
import json
import signal

from tests.helpers.databases import connect_postgres, gone
from tests.helpers.processes import Site
from tests.helpers.relaying import fill
from tests.helpers.webhooks import moment


def test_neither_side_starts_on_a_sequence_behind_its_table_and_both_name_the_statement(
    postgres_database_url: str, postgres_place: Site
) -> None:
    fill(postgres_database_url, [("u1", moment(1)), ("u2", moment(2))])
    mends = "SELECT setval('public.inbox_seq_seq', 2)"
    with contextlib.closing(connect_postgres(postgres_database_url)) as owner:
        owner.execute("SELECT setval('inbox_seq_seq', 1)")
        receiver, relay = postgres_place.start_refused_receiver(), postgres_place.relay("--processes", "2")
        listing = postgres_place.invoke("inbox", "list", "--json")
        assert (listing.status, len(json.loads(listing.stdout))) == (0, 2)
        for program in (receiver, relay):
            assert program.ends() == 2, program.output
            assert mends in " ".join(program.output.split())
            assert "Traceback" not in program.output

        owner.execute(mends.encode())
        assert postgres_place.relay("--drain").ends() == 0


def test_a_relay_that_starts_before_its_database_waits_for_it(postgres_database_url: str, postgres_place: Site) -> None:
    """A machine that comes back after a power cut starts both at once. What a service manager sees as a mistake, it leaves."""
    with gone(postgres_database_url):
        waiting, parent = postgres_place.relay(), postgres_place.relay("--processes", "2")
        for program in (waiting, parent):
            program.writes("database trouble while starting, trying again", times=2)
        drain = postgres_place.relay("--drain")
        assert drain.ends() == 2, "who waits for its end learns why"
        for program in (waiting, parent):
            program.send(signal.SIGHUP)
            tried = program.output.count("trying again")
            program.writes("trying again", times=tried + 1)
        assert waiting.stop() == 0
    for word in ("started node", "reloaded node"):
        parent.writes(word, times=2)
    assert parent.stop() == 0


def test_a_command_that_meets_a_lock_says_that_it_stays_open_and_what_to_do(
    postgres_database_url: str, postgres_place: Site
) -> None:
    """Whoever reads of an error alone asks again, while a relay carries the first one out."""
    fill(postgres_database_url, [("u1", moment(1))])
    with contextlib.closing(connect_postgres(postgres_database_url)) as person:
        person.execute("BEGIN")
        person.execute("SELECT id FROM order_lock FOR UPDATE")
        ended = postgres_place.invoke("relay", "cancel", "--seq", "1", "--reason", "x", "--yes")
        person.execute("ROLLBACK")
        assert ended.status == 2
        said = " ".join(ended.stderr.split())
        assert "command 1 stays open, and a relay carries it out" in said
        assert "another session holds a lock: try again" in said
        assert "`relay stop --command 1` stops it" in said
        assert postgres_place.invoke("relay", "stop", "--command", "1", "--reason", "x", "--yes").status == 0
        row = person.execute("SELECT state FROM relay_command WHERE id = 1").fetchone()
        assert row == ("cancelled",)
