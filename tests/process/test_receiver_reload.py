"""A running receiver reads its configuration again on SIGHUP; an unusable one changes nothing."""

from __future__ import annotations

import http.client
import json
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
from tests.helpers.processes import PATIENT, Program, Site, free_port, gunicorn_after, is_ready
from tests.helpers.receiver import post_json
from tests.helpers.tables import read_inbox
from tests.helpers.traffic import Sender, endless
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, TOKEN, body, config_text
from tests.sources.test_secevent import AUDIENCE, EC, ISSUER, RSA, jwks, make_token

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "s3cret"
REFUSED = "[ERROR] reload refused: "
LINGERS = gunicorn_after("from inbox.http import protocol; protocol.LINGER_SECONDS = 4.0")
BY_CONF = ("-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))
SIGNALS = f"""
[sources.signals]
preset = "secevent"
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
secrets = ["file:{{keys}}"]
"""
SHARED_KEY = json.dumps({"keys": [{"kty": "oct", "kid": "s", "k": "dG9wc2VjcmV0"}]})
"""A symmetric key, which is refused: the verifier could sign with it."""


def source(name: str, *secrets: str, preset: str = "trivore") -> str:
    return f"""
[sources.{name}]
preset = "{preset}"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = {list(secrets)} }}
"""


def post(port: int, name: str, token: str = TOKEN) -> int:
    """Post a webhook to this source and return the status."""
    return post_json(port, f"/webhooks/{name}", body(), {"X-Webhook-Token": token})


def replace_workers(receiver: Program, do: Callable[[], None]) -> str:
    """Call `do`, wait until gunicorn has replaced its workers, and return the output since."""
    workers, written = set(receiver.children()), len(receiver.output)

    def are_others() -> bool:
        present = set(receiver.children())
        return not receiver.runs or (len(present) == len(workers) and not present & workers)

    do()
    until(are_others, "other workers have taken over")
    assert receiver.runs, receiver.output
    return receiver.output[written:]


def crash(receiver: Program) -> None:
    def kill_workers() -> None:
        for pid in receiver.children():
            os.kill(pid, signal.SIGKILL)

    replace_workers(receiver, kill_workers)


def mistakes_after_reload(receiver: Program) -> list[str]:
    """Reload and return the mistakes of a refused configuration."""
    written = replace_workers(receiver, lambda: receiver.send(signal.SIGHUP))
    said = [line.partition(REFUSED)[2] for line in written.splitlines() if REFUSED in line]
    assert not said or said.pop() == "the old configuration stays"
    return said


def test_a_new_source_is_served_after_sighup_and_no_request_fails_meanwhile(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    config = config_text(database_url)
    receiver, port = place.receiver(2 if is_postgres(database_url) else 1, PATIENT)
    assert post(port, "added-1") == 401
    with Sender(tmp_path / "sends.jsonl", port, endless(), timeout=60) as sender:
        for number, send in enumerate((os.kill, os.killpg), 1):  # the last to its workers, too
            acknowledged = sender.acknowledged
            until(lambda: sender.acknowledged >= acknowledged + 100, "the sender is at work")
            config += source(f"added-{number}", TOKEN)
            place.configure(config)
            written = replace_workers(receiver, lambda: send(receiver.pid, signal.SIGHUP))
            assert "[INFO] reloaded sources=trivore,unrouted,added-1" in written
            assert post(port, f"added-{number}") == 200
    sends = sender.sends.lines()
    assert {line["outcome"] for line in sends} == {None, "ok"}
    assert checkers.find_unstored(sends, read_inbox(engine)) == []
    assert checkers.find_complaints(place.logs()) == []


def test_a_stopping_worker_answers_a_request_on_an_open_connection(sqlite_place: Site) -> None:
    receiver, port = sqlite_place.receiver(1, LINGERS)
    asking, silent = (http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(2))

    def ask(connection: http.client.HTTPConnection) -> str | None:
        connection.request("POST", PATH, body(), dict(HEADERS))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        return answer.getheader("connection")

    def reload_and_ask() -> None:
        receiver.send(signal.SIGHUP)
        receiver.writes("Shutting down")
        assert ask(asking) == "close"

    assert [ask(connection) for connection in (asking, silent)] == [None, None]
    replace_workers(receiver, reload_and_ask)
    assert silent.sock is not None
    assert silent.sock.recv(1) == b""
    silent.close()


def test_a_bad_file_is_refused_and_the_old_one_stays_even_after_a_crash(
    postgres_place: Site, postgres_database_url: str
) -> None:
    good, port = config_text(postgres_database_url), free_port()
    elsewhere = config_text("postgresql+psycopg://relay:hush@db.invalid/inbox")
    needs_a_restart = "[database] url: another value needs a restart"
    bad_files: dict[str, list[str]] = {
        f"{good}\n[sources.cut": ["inbox.toml is not TOML: "],
        good.replace("preset", "presett"): 2 * ["presett: unknown key; did you mean 'preset'?", "preset: is missing"],
        f"{good}[metrics]\nreceiver = '127.0.0.1:1'": ["[metrics] receiver: another value needs a restart"],
        elsewhere + source("added", "env:NOT_THERE"): [needs_a_restart, "NOT_THERE is not set"],
    }
    receiver = postgres_place.start("receiver", *BY_CONF, "--bind", f"127.0.0.1:{port}", WEB_CONCURRENCY="2")
    until(lambda: is_ready(port) and len(receiver.children()) == 2, "both workers are there")
    for text, expected in bad_files.items():
        postgres_place.configure(text)
        for line, part in zip(mistakes_after_reload(receiver), expected, strict=True):
            assert part in line
        assert [post(port, "trivore"), post(port, "added")] == [200, 401]
    crash(receiver)
    assert post(port, "trivore") == 200
    postgres_place.configure(good + source("added", TOKEN))
    assert mistakes_after_reload(receiver) == []
    postgres_place.configure("bad")
    assert mistakes_after_reload(receiver) != []
    crash(receiver)
    assert post(port, "added") == 200
    assert "hush" not in receiver.output
    assert len(receiver.children()) == 2


def test_secrets_and_keys_in_files_are_read_again_on_sighup_only(
    sqlite_place: Site, sqlite_database_url: str, tmp_path: Path
) -> None:
    secret, keys = tmp_path / "secret", tmp_path / "jwks.json"
    secret.write_text("first\n", encoding="utf-8")
    keys.write_text(jwks(r=RSA), encoding="utf-8")
    sqlite_place.configure(
        config_text(sqlite_database_url) + source("rotating", f"file:{secret}") + SIGNALS.format(keys=keys)
    )
    receiver, port = sqlite_place.receiver(workers=1)
    tokens = iter("12345")

    def answers() -> list[int]:
        """Return the statuses with the first secret, with the second, and with a token of the first key."""
        token = make_token(RSA, "RS256", "r", jti=next(tokens))
        signed = post_json(port, "/webhooks/signals", token, {"Content-Type": "application/secevent+jwt"})
        return [*(post(port, "rotating", each) for each in ("first", "second")), signed]

    secret.write_text("second\n", encoding="utf-8")
    crash(receiver)
    assert answers() == [200, 401, 202]
    assert mistakes_after_reload(receiver) == []
    assert answers() == [401, 200, 202]
    secret.unlink()
    keys.write_text(SHARED_KEY, encoding="utf-8")
    assert len(mistakes_after_reload(receiver)) == 2
    crash(receiver)
    assert answers() == [401, 200, 202]
    secret.write_text("second\n", encoding="utf-8")
    keys.write_text(jwks(e=EC), encoding="utf-8")
    assert mistakes_after_reload(receiver) == []
    assert answers() == [401, 200, 401]


def test_a_receiver_does_not_start_without_a_usable_key_and_says_why(sqlite_place: Site, tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(SHARED_KEY, encoding="utf-8")
    sqlite_place.configure(config_text("sqlite:///inbox.db") + SIGNALS.format(keys=keys))
    receiver = sqlite_place.start_refused_receiver()
    assert receiver.ends() != 0
    assert "[sources.signals] secrets: a" in receiver.output
    assert "dG9wc2VjcmV0" not in receiver.output


def test_an_unexpected_error_in_a_reload_stops_nothing_and_its_message_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in `on_reload` would end gunicorn's master and all workers."""

    def fail() -> None:
        raise RuntimeError(SECRET)

    log = logging.getLogger("none")
    server = SimpleNamespace(log=SimpleNamespace(error_log=log, access_log=log))
    monkeypatch.setattr(gunicorn_settings, "load_file", fail)
    gunicorn_settings.on_reload(server)
    assert "reload refused: the old configuration stays" in caplog.messages
    assert (SECRET in caplog.text, "RuntimeError" in caplog.text) == (False, True)
