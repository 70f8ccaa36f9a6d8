"""A receiver that runs reads its configuration again on SIGHUP; one that can't be used changes nothing."""

from __future__ import annotations

import http.client
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine

from inbox import gunicorn_settings
from tests.helpers import checkers
from tests.helpers.databases import is_postgres
from tests.helpers.processes import INBOX, PATIENT, Program, Site, free_port, gunicorn_after, is_ready, site
from tests.helpers.receiver import posted
from tests.helpers.tables import stored
from tests.helpers.traffic import Sender, endless
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, body, config_text

ROOT = Path(__file__).resolve().parent.parent.parent
REFUSED = "[ERROR] reload refused: "
SECRET = "s3cret"
BY_CONF = ("-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))


def source(name: str, *secrets: str, preset: str = "trivore") -> str:
    return f"""
[sources.{name}]
preset = "{preset}"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = {list(secrets)} }}
"""


def post(port: int, name: str, token: str = TOKEN) -> int:
    """The status that a webhook of this source is answered with."""
    return posted(port, f"/webhooks/{name}", body(), {"X-Webhook-Token": token})


def replaced(receiver: Program, do: Callable[[], None]) -> str:
    """Do what makes gunicorn replace its workers and wait until it has; gives what was written meanwhile."""
    workers, written = set(receiver.children()), len(receiver.output)

    def are_others() -> bool:
        present = set(receiver.children())
        return not receiver.runs or (len(present) == len(workers) and not present & workers)

    do()
    until(are_others, "other workers have taken over")
    assert receiver.runs, receiver.output
    return receiver.output[written:]


def reload(receiver: Program) -> str:
    return replaced(receiver, lambda: receiver.send(signal.SIGHUP))


def crash(receiver: Program) -> str:
    def kill_workers() -> None:
        for pid in receiver.children():
            os.kill(pid, signal.SIGKILL)

    return replaced(receiver, kill_workers)


def refusals(output: str) -> list[str]:
    """The mistakes for which a reload was refused; none when it was not."""
    said = [line.partition(REFUSED)[2] for line in output.splitlines() if REFUSED in line]
    assert not said or said.pop() == "the old configuration stays"
    return said


def test_a_new_source_is_served_after_sighup_and_no_request_fails_meanwhile(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    config = config_text(database_url)
    receiver, port = place.receiver(2 if is_postgres(database_url) else 1, PATIENT)
    assert post(port, "added-1") == 401
    sender = Sender(tmp_path / "sends.jsonl", port, endless(), timeout=60)
    try:
        for number, send in enumerate((os.kill, os.kill, os.killpg), 1):  # the last to its workers, too
            acknowledged = sender.acknowledged()
            until(lambda: sender.acknowledged() >= acknowledged + 100, "the sender is at work")
            config += source(f"added-{number}", TOKEN)
            place.configure(config)
            written = replaced(receiver, lambda: send(receiver.pid, signal.SIGHUP))
            assert "[INFO] reloaded sources=trivore,unrouted,added-1" in written
            assert post(port, f"added-{number}") == 200
    finally:
        sender.stop()
    sends = sender.sends.lines()

    assert {line["outcome"] for line in sends} == {None, "ok"}
    assert len(sends) >= 600
    assert checkers.unstored(sends, stored(engine)) == []
    assert checkers.complaints(place.logs()) == []


def test_a_worker_that_leaves_answers_what_comes_on_an_open_connection(
    sqlite_place: Site,
) -> None:
    receiver, port = sqlite_place.receiver(
        1, gunicorn_after("from inbox.http import protocol; protocol.LINGER_SECONDS = 4.0")
    )
    asking, silent = (http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(2))

    def ask(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        connection.request("POST", PATH, body(), dict(HEADERS))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        return answer

    def reload_and_ask() -> None:
        receiver.send(signal.SIGHUP)
        receiver.writes("Shutting down")
        assert ask(asking).getheader("connection") == "close"

    for connection in (asking, silent):
        assert ask(connection).getheader("connection") is None
    replaced(receiver, reload_and_ask)
    assert silent.sock is not None
    assert silent.sock.recv(1) == b""
    silent.close()


def test_a_bad_file_is_refused_mistake_by_mistake_and_the_old_one_stays_in_force(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    good = config_text(sqlite_database_url)
    elsewhere = config_text("postgresql+psycopg://relay:hush@db.invalid/inbox")
    needs_a_restart = "[database] url: another value needs a restart"
    bad_files: dict[str, list[str]] = {
        f"{good}\n[sources.cut": ["inbox.toml is not TOML: "],
        good.replace("preset", "presett"): 2 * ["presett: unknown key; did you mean 'preset'?", "preset: is missing"],
        good + source("other", TOKEN, preset="trivor"): [
            "[sources.other] preset: there is no preset 'trivor'; did you mean 'trivore'?",
        ],
        good + source("added", "env:NOT_THERE", "file:/not/there"): [
            "[sources.added] auth: the environment variable NOT_THERE is not set",
            "[sources.added] auth: can't read the secret in /not/there",
        ],
        elsewhere + source("added", TOKEN): [needs_a_restart],
        f"{good}[metrics]\nreceiver = '127.0.0.1:1'": ["[metrics] receiver: another value needs a restart"],
        elsewhere + source("added", "env:NOT_THERE"): [needs_a_restart, "[sources.added] auth: "],
    }
    with site(tmp_path, good) as place:
        receiver, port = place.receiver(1, PATIENT)
        sender = Sender(tmp_path / "sends.jsonl", port, endless(), timeout=60)
        try:
            for text, expected in bad_files.items():
                place.configure(text)
                said = refusals(reload(receiver))
                assert len(said) == len(expected)
                for line, part in zip(said, expected, strict=True):
                    assert part in line
                assert post(port, "trivore") == 200
                assert post(port, "added") == 401
            place.configure(good + source("added", TOKEN))
            assert refusals(reload(receiver)) == []
            assert post(port, "added") == 200
        finally:
            sender.stop()
        assert "hush" not in receiver.output
        assert {line["outcome"] for line in sender.sends.lines()} == {None, "ok"}
        assert checkers.complaints(place.logs()) == []


def test_a_refused_reload_leaves_as_many_workers_as_there_were(postgres_database_url: str, tmp_path: Path) -> None:
    port = free_port()
    with site(tmp_path, config_text(postgres_database_url)) as place:
        receiver = place.start("receiver", *BY_CONF, "--bind", f"127.0.0.1:{port}", WEB_CONCURRENCY="2")
        until(lambda: is_ready(port) and len(receiver.children()) == 2, "both workers are there")
        place.configure("bad")
        assert refusals(reload(receiver)) != []
        assert len(receiver.children()) == 2


def test_a_crashed_worker_is_replaced_by_one_that_serves_the_same_though_the_file_is_bad_now(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    good = config_text(sqlite_database_url)
    with site(tmp_path, good) as place:
        receiver, port = place.receiver(workers=2, way=(*INBOX, "serve"))
        place.configure("bad")
        crash(receiver)
        assert post(port, "trivore") == 200

        place.configure(good + source("added", TOKEN))
        assert refusals(reload(receiver)) == []
        assert post(port, "added") == 200

        place.configure("bad")
        assert refusals(reload(receiver)) != []
        crash(receiver)
        assert post(port, "added") == 200
        assert is_ready(port)


def test_a_rotated_secret_file_is_taken_up_on_sighup_and_not_before(sqlite_database_url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first\n", encoding="utf-8")
    with site(tmp_path, config_text(sqlite_database_url) + source("rotating", f"file:{secret}")) as place:
        receiver, port = place.receiver(workers=1)
        secret.write_text("second\n", encoding="utf-8")
        crash(receiver)
        assert [post(port, "rotating", token) for token in ("first", "second")] == [200, 401]

        reload(receiver)
        assert [post(port, "rotating", token) for token in ("first", "second")] == [401, 200]

        secret.unlink()
        assert len(refusals(reload(receiver))) == 1
        crash(receiver)
        assert [post(port, "rotating", token) for token in ("first", "second")] == [401, 200]


def test_a_bug_that_a_reload_meets_stops_nothing_and_its_message_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever `on_reload` raises ends gunicorn's master, and with it every worker."""

    def fail() -> None:
        raise RuntimeError(SECRET)

    log = logging.getLogger("none")
    server = SimpleNamespace(log=SimpleNamespace(error_log=log, access_log=log))
    monkeypatch.setattr(gunicorn_settings, "load_file", fail)
    gunicorn_settings.on_reload(server)
    assert "reload refused: the old configuration stays" in caplog.messages
    assert SECRET not in caplog.text
    assert "RuntimeError" in caplog.text
