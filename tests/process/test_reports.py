"""`relay plan`, `sweep`, `verify` and `rebuild` compare two sides and report their differences."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db.intake import Rejected
from inbox.events.event import RawRequest
from inbox.sources.normalize import make_readers
from relay.cli import compare, listings, status
from relay.store import nodes
from relay.store.database import Database
from tests.helpers.databases import ON_BOTH, down
from tests.helpers.processes import INBOX, RELAY, Ended, Site
from tests.helpers.relaying import fill, give_up, work_of
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.storing import START, Intake
from tests.helpers.tables import count, rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, SYNC_CONFIG, a_config, body, config_text, moment

CONFIG = (
    SYNC_CONFIG
    + """
map = {{ name = "entity.name", phone = "entity.phone" }}
clear_when_absent = ["phone"]
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
params = {{ since = "{{since}}", start = "{{start}}", count = "{{count}}" }}
pages = {{ by = "start", count = 2 }}
"""
)
PAIRS = {
    "u1": (answer(200, {"name": "Ada"}), [{"id": "c1", "name": "Ada", "phone": None}]),
    "u2": (answer(200, {"name": "Grace"}), [{"id": "c2", "name": "Grcae", "phone": "+44"}]),
    "u3": (answer(404), [{"id": "c3", "name": "Gone"}]),
    "u4": (answer(200, {"name": "Edsger"}), []),
    "u5": (answer(503), []),
}
"""Maps each user to the source's response and its contacts."""
TO_CRM = 'destination = "crm"\n'


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    routes = {f"GET /api/user/{user}": [act] * 9 for user, (act, _) in PAIRS.items()}
    routes |= {f"GET /contacts?externalId={user}": [answer(200, {"items": to})] * 9 for user, (_, to) in PAIRS.items()}
    with serving(routes=routes) as made:
        yield made


@pytest.fixture
def config(server: ScriptedServer, database_url: str) -> str:
    return config_text(database_url) + CONFIG.format(url=server.url)


@pytest.fixture
def synced(place: Site, config: str, database_url: str) -> Site:
    """A site with three users of two events each."""
    place.configure(config)
    fill(database_url, [(f"u{n % 3 + 1}", moment(n)) for n in range(6)])
    return place


def plan(place: Site, *options: str) -> Ended:
    return place.invoke("relay", "plan", *options)


def with_new(place: Site, new: str, *options: str) -> Ended:
    """Compare the site's configuration with `new`."""
    (place.folder / "new.toml").write_text(new, encoding="utf-8")
    return plan(place, "--config", str(place.folder / "new.toml"), *options)


def test_a_plan_shows_each_change_field_by_field_and_writes_nothing(
    synced: Site, server: ScriptedServer, engine: Engine, database_url: str, config: str
) -> None:
    of_crm = ("--route", "user-to-crm")
    ended = plan(synced, *of_crm)
    assert ended.status == 1, ended.stderr
    assert [line.split() for line in ended.stdout.splitlines()[1:]] == [
        ["USER/u2", "update", "name", "Grcae", "Grace"],
        ["USER/u2", "update", "phone", "+44"],
        ["USER/u3", "delete"],
    ]
    assert plan(synced, *of_crm, "--entity", "USER/u1")[:2] == (0, "")
    fill(database_url, [("u4", moment(9)), ("u5", moment(10))])
    found = json.loads(plan(synced, *of_crm, "--json").stdout)
    assert [(entity["entity_id"], entity["change"], entity["why"]) for entity in found] == [
        ("u2", "update", None),
        ("u3", "delete", None),
        ("u4", "create", None),
        ("u5", "failed", "fetch: answered 503 Service Unavailable"),
    ]
    assert found[0]["fields"][1] == {"field": "phone", "before": "+44", "after": None}
    assert plan(synced, *of_crm, "--entity", "USER/u5").status == 1, "it may be in sync"
    assert {seen.method for seen in server.seen} == {"GET"}
    assert count(engine, "delivery_log") == 0

    server.seen.clear()
    synced.configure(config.replace(TO_CRM, TO_CRM + 'when = { entity_type = ["GROUP"] }\n', 1))
    assert (plan(synced, *of_crm).status, server.seen) == (0, []), "the route takes no users"
    for wrong in (("--route", "nobody"), ("--route", "everything"), (*of_crm, "--entity", "u1")):
        assert plan(synced, *wrong).status == 2


@ON_BOTH
def test_a_plan_without_a_fetch_compares_the_newest_body_that_the_route_takes(
    place: Site, server: ScriptedServer, config: str, database_url: str
) -> None:
    """Neither a later arrival with an older time, nor an event of another type."""
    fetch = next(line for line in config.splitlines() if line.startswith("fetch ="))
    event_body = 'event_body = { name = "name" }\n'
    taken = config.replace(f"{fetch}\n", "").replace(TO_CRM, TO_CRM + 'when = { event_type = ["UPDATE", "sweep"] }\n')
    place.configure(taken + event_body)
    events = [("UPDATE", 5, "Ada"), ("UPDATE", 1, "Old"), ("LOGIN", 9, "x"), ("UPDATE", 5, "Ada L.")]
    headers = {name.lower(): value for name, value in HEADERS.items()}
    for number, (kind, at, name) in enumerate(events):
        payload = body("u1", moment(at), eventType=kind, name=name, n=number)
        for event in make_readers(a_config(database_url))["trivore"](RawRequest("trivore", headers, payload, START)):
            Intake(database_url).append(msgspec.structs.replace(event, dedup_key=str(number)))
    fill(database_url, [("u2", moment(0))])
    found = json.loads(plan(place, "--route", "user-to-crm", "--json").stdout)
    assert [(each["entity_id"], [(f["field"], f["after"]) for f in each["fields"]]) for each in found] == [
        ("u1", [("name", "Ada L.")]),
        ("u2", [("phone", None)]),
    ]
    assert {seen.target.partition("?")[0] for seen in server.seen} == {"/contacts"}
    ended = with_new(place, (taken + event_body).replace("entity.name", "entity.n"), "--fetch", "--json")
    assert len({each["last_seq"] for each in json.loads(ended.stdout) if each["part"] == "body.name"}) > 1


def test_another_configuration_is_compared_by_the_newest_events_and_with_fetch_by_their_writes(
    synced: Site, server: ScriptedServer, config: str
) -> None:
    ended = with_new(synced, config.replace(TO_CRM, TO_CRM + 'when = { event_type = ["LOGIN"] }\n'))
    assert (ended.status, ended.stdout.splitlines()[1].split()) == (
        1,
        ["user-to-crm", "takes", "it", "6", "6", "yes", "no"],
    )
    assert with_new(synced, config, "--events", "3") == (0, "", "3 events compared: no difference\n")
    assert "new.toml" in with_new(synced, config.replace("base_url", "bass_url")).stderr
    assert with_new(synced, config, "--entity", "USER/u1").status == 2
    new = config.replace('"entity.phone"', '"entity.mobile"')
    assert "--fetch compares the resulting writes" in with_new(synced, new).stderr
    assert server.seen == []
    server.routes["GET /api/user/u1"] = [answer(200, {"name": "Ada", "phone": "1", "mobile": "2"})] * 9
    (found,) = json.loads(with_new(synced, new, "--fetch", "--json").stdout)
    assert (found["part"], found["before"], found["after"], found["events"]) == ("body.phone", "1", "2", 2)
    assert {seen.method for seen in server.seen} == {"GET"}


# --- sweeps

EPOCH = "1970-01-01T00%3A00%3A00Z"
LOST = (
    ("u1", "2026-01-02T00:00:00.9Z"),  # the webhook's time is cut to the second
    ("u2", "2026-01-03T00:00:00Z"),
    ("u3", "2026-01-01T12:00:00Z"),
)


def list_users(server: ScriptedServer, *users: tuple[str, str], since: str = EPOCH) -> None:
    """Have the api list these users as changed since then, two a page."""
    for start in range(len(users) + 1):
        page = [{"id": user, "meta": {"lastModified": modified}} for user, modified in users[start : start + 2]]
        server.routes[f"GET /api/user?since={since}&start={start}&count=2"] = [answer(200, {"resources": page})]


DO_IT = ("--reason", "webhooks were off", "--yes")


def sweep(place: Site, *options: str) -> tuple[int, list[int]]:
    """Run a sweep; return its exit status and the numbers of compared, missed and added entities."""
    ended = place.invoke("relay", "sweep", "--source", "trivore", "--json", *options)
    (only,) = json.loads(ended.stdout)
    return ended.status, [only["compared"], only["missed"], only["added"]]


def test_a_missed_change_becomes_one_event_and_only_a_whole_sweep_moves_the_watermark(
    place: Site, config: str, server: ScriptedServer, engine: Engine, database_url: str
) -> None:
    place.configure(
        config.replace('[routes.user-to-crm]\nsource = "trivore"', '[routes.user-to-crm]\nsource = "unrouted"')
    )
    fill(database_url, [("u1", "2026-01-01T00:00:00Z"), ("u1", "2026-01-02T00:00:00Z"), ("u2", "2026-01-01T00:00:00Z")])
    list_users(server, *LOST)
    assert sweep(place) == (1, [3, 2, 0])
    server.routes[f"GET /api/user?since={EPOCH}&start=0&count=2"] = [answer(404)]
    assert place.invoke("relay", "sweep", "--source", "trivore", *DO_IT).status == 2
    list_users(server, ("u9", "2126-01-01T00:00:00Z"), since="2026-01-03T00%3A00%3A00Z")
    assert sweep(place, "--since", "2026-01-03", *DO_IT) == (0, [0, 0, 0]), "this minute is left out"
    assert count(engine, "sweep_watermark WHERE compared_until IS NOT NULL") == 0

    list_users(server, *LOST)
    assert place.invoke("relay", "sweep", "--source", "trivore", "--yes").status == 2, "a reason is missing"
    assert sweep(place, *DO_IT) == (1, [3, 2, 2])
    noted = rows(engine, "SELECT kind, reason, state FROM relay_command ORDER BY id DESC LIMIT 1")
    assert [tuple(row.values()) for row in noted] == [("sweep", DO_IT[1], "done")]
    added = rows(engine, "SELECT entity_id, event_type FROM inbox WHERE seq > 3 ORDER BY entity_id")
    assert [tuple(row.values()) for row in added] == [("u2", "sweep"), ("u3", "sweep")]
    assert count(engine, "open_delivery WHERE state = 'received' AND seq > 3") == 2
    list_users(
        server, LOST[1], since="2026-01-02T23%3A55%3A00Z"
    )  # a sweep begins a little before the end of the last one
    assert sweep(place, *DO_IT) == (0, [1, 0, 0])
    for source in ("nobody", "unrouted"):
        assert place.invoke("relay", "sweep", "--source", source).status == 2


# --- state and log


def test_differences_of_state_and_log_end_with_1_until_they_are_repaired(
    place: Site, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(seqs: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM open_delivery WHERE seq IN ({seqs})")

    fill(database_url, [(f"u{n % 10}", moment(n)) for n in range(40)])
    for command in ("verify", "rebuild"):
        assert place.invoke("relay", command).status == 0
    lose("3, 7")
    found = place.invoke("relay", "verify")
    assert (found.status, "2 differences in 40 events" in found.stderr) == (1, True)
    assert found.stdout.splitlines()[1].split() == ["missing", "3", "everything", "open", "no", "row"]
    listing = json.loads(place.invoke("relay", "verify", "--json").stdout)
    assert [(each["finding"], each["seq"]) for each in listing] == [("missing", 3), ("missing", 7)]
    assert "repaired 2 differences in 40 events" in place.invoke("relay", "rebuild", *DO_IT).stdout
    assert (place.invoke("relay", "verify").status, count(engine, "open_delivery")) == (0, 40)

    lose("3, 7, 8")
    monkeypatch.setattr(compare, "_MOST_DIFFERENCES", 2)
    many = place.invoke("relay", "verify")
    assert (len(many.stdout.splitlines()), "3 differences in 40 events" in many.stderr) == (3, True)
    assert [len(json.loads(place.invoke("relay", "rebuild", "--json", *DO_IT).stdout)) for _ in range(2)] == [2, 0]


# --- `relay status` and its `--check`, `inbox tail` and `relay tail`


CHECK = ("relay", "status", "--check")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the check report a finding without a second look."""
    monkeypatch.setattr(status, "_LOOK_AGAIN_SECONDS", 0)


def findings(ended: Ended) -> list[str]:
    assert ended.status == 1
    return [row["kind"] for row in json.loads(ended.stdout)]


def register_relay(engine: Engine, host: str = "") -> None:
    """Store a relay that has just started, on this host by default."""
    nodes.describe(work_of(Database(engine), node="r1"), host or socket.gethostname(), 7, "1")


def test_the_status_is_one_object_for_programs_and_lines_for_people(
    place: Site, database_url: str, engine: Engine
) -> None:
    fill(database_url, [("u1", moment(0))])
    ended = place.invoke("relay", "status", "--json")
    seen = json.loads(ended.stdout)
    assert (ended.status, ended.stderr) == (0, "")
    assert list(seen) == [
        "at", "routes", "gates", "relays", "alerts", "commands", "sweeps", "retention", "ahead", "findings", "next"
    ]  # fmt: skip
    (route,) = seen["routes"]
    assert (route["route"], route["received"], route["state"]) == ("everything", 1, "busy")
    assert isinstance(route["oldest_age_seconds"], float)
    assert [each["command"] for each in seen["next"]] == ["relay run"]
    register_relay(engine, "[/red]")
    ended = place.invoke("relay", "status")
    assert (ended.status, ended.stderr, "[/red]" in ended.stdout) == (0, "", True)


AT_TERMINAL = ("-c", "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))")
"""Arguments for `python` that run the rest of the command line at a terminal."""


def test_a_watched_status_at_a_terminal_is_redrawn_through_an_outage_until_ctrl_c(
    postgres_place: Site, postgres_database_url: str
) -> None:
    command = (sys.executable, *RELAY, "status", "--watch", "--every", "0.1")
    watching = postgres_place.start("watch", *AT_TERMINAL, *command, TERM="xterm-256color", COLUMNS="80")
    watching.writes("nothing open", times=2)
    with down(postgres_database_url):
        watching.writes("the database: ")
    fill(postgres_database_url, [("u1", moment(0))])
    watching.writes("1 open")
    os.kill(watching.children()[0], signal.SIGINT)
    assert watching.ends() == 0
    assert "\x1b[2K" in watching.output, "the lines before are cleared"
    assert "Traceback" not in watching.output


def test_a_watched_status_in_a_pipe_is_printed_repeatedly(sqlite_place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = iter([0.0])

    def sleep(_seconds: float) -> None:
        if next(naps, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    ended = sqlite_place.invoke("relay", "status", "--watch")
    assert (ended.status, ended.stdout.count("no relay running")) == (0, 2)
    for wrong in (("--watch", "--check"), ("--here",)):
        assert sqlite_place.invoke("relay", "status", *wrong).status == 2


@pytest.mark.usefixtures("at_once")
def test_the_check_ends_with_0_while_a_relay_lives_and_with_1_without_one_or_with_stuck_deliveries(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    def change(statement: str) -> None:
        with sqlite_engine.begin() as connection:
            connection.execute(text(statement), {"then": "2020-01-01 00:00:00.000000Z"})

    register_relay(sqlite_engine)
    assert sqlite_place.invoke(*CHECK, "--here") == (0, "", "")
    fill(sqlite_database_url, [("u1", moment(0))])
    change("UPDATE open_delivery SET state = 'ready', due_at = :then")
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["stuck"]
    change("UPDATE relay_node SET heartbeat_at = :then")
    gone = sqlite_place.invoke(*CHECK, "--json")
    assert findings(gone) == ["no_relay", "stuck"]
    assert [row["fields"].get("route") for row in json.loads(gone.stdout)] == [None, "everything"]
    for_people = sqlite_place.invoke(*CHECK)
    assert (for_people.status, for_people.stderr) == (1, "")
    assert for_people.stdout.splitlines()[0] == "no relay has sent a heartbeat for 15 s"


def test_a_finding_that_does_not_last_is_not_reported(
    sqlite_place: Site, sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=lambda _seconds: register_relay(sqlite_engine)))
    assert sqlite_place.invoke(*CHECK) == (0, "", "")


def test_a_database_that_does_not_answer_is_a_finding_and_a_bad_file_is_wrong_use(sqlite_place: Site) -> None:
    sqlite_place.configure(config_text("postgresql+psycopg://relay:s3cret@127.0.0.1:9/inbox"))
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["no_database"]
    ended = sqlite_place.invoke("relay", "status")
    assert (ended.status, ended.stderr.count("\n"), "s3cret" in ended.stderr) == (2, 1, False)
    sqlite_place.configure("bad")
    assert sqlite_place.invoke(*CHECK).status == 2


@pytest.mark.usefixtures("at_once")
def test_a_blocked_lane_and_a_failing_step_are_findings_and_here_omits_the_lane(
    sqlite_place: Site, sqlite_database_url: str, sqlite_engine: Engine
) -> None:
    fill(sqlite_database_url, [("u1", moment(0))])
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'blocked'"))
    register_relay(sqlite_engine)
    nodes.heartbeat(Database(sqlite_engine), "r1", {"claim": "ValueError: year 10000 is out of range"})
    assert findings(sqlite_place.invoke(*CHECK, "--json")) == ["step_failed", "blocked"]
    assert findings(sqlite_place.invoke(*CHECK, "--here", "--json")) == ["step_failed"]
    shown = sqlite_place.invoke("relay", "status")
    assert (shown.status, "year 10000 is out of range" in shown.stdout) == (0, True)


# --- `inbox tail` and `relay tail`


REJECTED = Rejected(START, "trivore", 422, "invalid_event", "no id \x1b[31m", None, None, b"1" * 32, None, None)


def objects(written: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines() if line.startswith("{")]


@pytest.fixture
def tail(place: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """A function that runs a tail, calls `happens` after the first rows, and ends the tail after the next ones."""

    def tails(happens: Callable[[], object], side: str, *options: str) -> Ended:
        events = iter([happens])

        def wait() -> None:
            following = next(events, None)
            if following is None:
                raise KeyboardInterrupt
            following()

        monkeypatch.setattr(listings, "wait_for_more", wait)
        return place.invoke(side, "tail", *options)

    return tails


def test_arrivals_and_rejected_requests_are_followed_until_ctrl_c(
    tail: Callable[..., Ended], database_url: str
) -> None:
    fill(database_url, [("before", moment(0))])

    def happens() -> None:
        fill(database_url, [("u1", moment(1)), ("u2", moment(2))])
        Intake(database_url).reject(REJECTED, msgspec.structs.replace(REJECTED, cause="unknown_source"))

    every = tail(happens, "inbox", "--ndjson")
    assert every.status == 0
    assert sorted((each["kind"], each.get("entity_id")) for each in objects(every.stdout)) == [
        ("arrived", "u1"),
        ("arrived", "u2"),
        *[("rejected", None)] * 2,
    ]
    of_two = tail(lambda: fill(database_url, [("u2", moment(3)), ("u3", moment(3))]), "inbox", "--entity", "USER/u2")
    heading, line = of_two.stdout.splitlines()
    assert heading.split() == ["received_at", "kind", "number", "source", "entity", "what"]
    assert line.split()[1:] == ["arrived", "4", "trivore", "USER/u2", "UPDATE", "→", "everything"]
    rejected = tail(happens, "inbox", "--ndjson", "--kind", "rejected", "--cause", "invalid_event")
    assert [each["cause"] for each in objects(rejected.stdout)] == ["invalid_event"]


def test_outcomes_are_followed_and_may_begin_earlier(
    tail: Callable[..., Ended], database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [("u1", moment(0))], reason="email: no value")
    followed = tail(
        lambda: give_up(engine, database_url, [("u2", moment(1))], reason="email: no value"), "relay", "--since", "1h"
    )
    lines = [line.split() for line in followed.stdout.splitlines()[1:]]
    assert [line[1:5] for line in lines] == [["dead", str(seq), "everything", f"USER/u{seq}"] for seq in (1, 2)]
    others = tail(lambda: None, "relay", "--ndjson", "--cause", "exhausted", "--since", "1h")
    assert objects(others.stdout) == []


def test_an_export_has_each_row_once_in_order(place: Site, database_url: str, engine: Engine) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in (1, 2, 3)], reason="email: no value")
    for options, wanted in (((), [1, 2, 3]), (("--entity", "USER/u2"), [2]), (("--since", "2999-01-01"), [])):
        for side in ("inbox", "relay"):
            ended = place.invoke(side, "tail", "--end", "--ndjson", *options)
            assert (ended.status, ended.stderr) == (0, "")
            assert [each["seq"] for each in objects(ended.stdout)] == wanted
    newest_first = place.invoke("inbox", "list", "--ndjson").stdout
    assert [each["seq"] for each in objects(newest_first)] == [3, 2, 1]


def test_a_tail_survives_an_outage_of_the_database_without_a_gap(
    postgres_place: Site, postgres_database_url: str
) -> None:
    program = postgres_place.start("tail", *INBOX, "tail", "--ndjson")
    program.writes("following; press Ctrl-C to stop")
    fill(postgres_database_url, [("u1", moment(1))])
    program.writes('"seq": 1')
    with down(postgres_database_url):
        program.writes("the database does not answer")
        time.sleep(1.2)  # it looks twice more
    fill(postgres_database_url, [("u2", moment(2)), ("u3", moment(3))])
    program.writes("the database answers again")
    until(lambda: len(objects(program.output)) == 3, "the tail goes on")
    program.send(signal.SIGINT)
    assert (program.ends(), "Traceback" in program.output) == (0, False)
    assert [each["seq"] for each in objects(program.output)] == [1, 2, 3]
    assert program.output.count("does not answer") == 1
