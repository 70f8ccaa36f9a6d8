"""Guessing at passwords: slow, the same for every name, in the log, and no burden for the page."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import pytest

from inbox.config.model import Config
from relay.accounts import is_password
from relay.web import guard
from relay.web.query import FORM_TYPE
from tests.helpers.page import OTHER_PASSWORD, PASSWORD, TOKEN, Entrance, entrance


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The setting of each hash that was made."""
    settings: list[str] = []

    def counted(password: str, hashed: str) -> bool:
        settings.append(hashed.split("$")[3])
        return is_password(password, hashed)

    monkeypatch.setattr(guard, "is_password", counted)
    return settings


def test_after_ten_wrong_passwords_there_is_a_pause_also_for_the_right_one(door: Entrance, hashed: list[str]) -> None:
    assert [door.sign_in("anna", "wrong").status_code for _ in range(11)] == [401] * 10 + [429]
    denied = door.sign_in()
    assert (denied.status_code, denied.headers["retry-after"], "set-cookie" in denied.headers) == (429, "30", False)
    assert len(hashed) == 10, "one that is limited costs nothing"
    assert door.get("/rejected.json", authorization=f"Bearer {TOKEN}").status_code == 200, "nor is a token held up"
    assert door.sign_in("veikko", OTHER_PASSWORD).status_code == 303, "others are not held up"
    door.later(30)
    assert door.sign_in().status_code == 303


def test_behind_a_listed_proxy_each_browser_has_its_own_limit(page_config: Config, tmp_path: Path) -> None:
    with entrance(page_config, tmp_path, forwarding=("127.0.0.1", "10.0.0.0/8")) as door:

        def sign_in(number: int, forwarded: str) -> int:
            form = {"name": f"name{number}", "password": PASSWORD}
            return door.post("/sign-in", form, x_forwarded_for=forwarded).status_code

        answers = [sign_in(number, f"192.0.2.{number}, 198.51.100.7, 10.0.0.9") for number in range(32)]
        assert answers == [401] * 30 + [429] * 2, "what the browser itself has sent counts for nothing"
        assert sign_in(40, "198.51.100.8, 10.0.0.9") == 401, "others are not held up"
        assert sign_in(41, "2001:db8::7") == 401


def test_an_unlisted_address_says_nothing_of_others(door: Entrance) -> None:
    answers = [
        door.post("/sign-in", {"name": f"n{number}", "password": "x"}, x_forwarded_for=f"192.0.2.{number}").status_code
        for number in range(32)
    ]
    assert answers == [401] * 30 + [429] * 2


@pytest.mark.parametrize("name", ["nobody", "", "x" * 64, "anna\x00", "\U0001f600", "anna:operator"])
def test_an_unknown_name_costs_as_much_as_a_known_one(door: Entrance, hashed: list[str], name: str) -> None:
    known = door.sign_in("anna", "wrong")
    unknown = door.sign_in(name, "wrong")
    assert hashed == ["m=8,t=1,p=1"] * 2
    assert (known.status_code, unknown.status_code) == (401, 401)


@pytest.mark.parametrize("field", ["name", "password"])
def test_a_field_that_is_too_long_is_refused_before_anything_is_done_with_it(
    door: Entrance, hashed: list[str], monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Marks that are sorted in a time which grows by the square, as many as a form may have."""
    monkeypatch.setattr(guard, "visible", pytest.fail)
    form = {"name": "anna", "password": PASSWORD, field: "\u0301" * 5_000 + "\u0316" * 5_000}
    answer = door.post("/sign-in", form)
    assert (answer.status_code, "at most" in answer.text, "\u0301" * 65 in answer.text) == (400, True, False)
    assert hashed == []


def test_a_request_of_another_site_costs_nothing(door: Entrance, hashed: list[str]) -> None:
    door.post("/sign-in", {"name": "anna", "password": PASSWORD}, sec_fetch_site="cross-site")
    assert hashed == []


def test_every_failure_is_in_the_log_in_one_line_without_the_password(
    door: Entrance, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gunicorn.error")
    door.sign_in("anna\n2026 forged \u202eline", "secret-guess")
    door.sign_in()
    said = [each.getMessage() for each in caplog.records if each.name == "gunicorn.error"]
    assert said == [
        r"failed sign-in as anna\n2026 forged \u202eline from 127.0.0.1",
        "anna has signed in from 127.0.0.1 as operator",
    ]
    assert "secret-guess" not in caplog.text
    assert PASSWORD not in caplog.text


def test_many_at_once_are_hashed_one_by_one_and_the_rest_has_to_wait(
    door: Entrance, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, one_by_one, overlaps = threading.Event(), threading.Lock(), []

    def slow(_password: str, _hashed: str) -> bool:
        overlaps.append(not one_by_one.acquire(blocking=False))
        going.wait(20)
        one_by_one.release()
        return False

    monkeypatch.setattr(guard, "is_password", slow)
    with ThreadPoolExecutor(14) as pool:
        tries = [pool.submit(door.sign_in, f"n{number}", "x" * 12) for number in range(14)]
        denied = [each.result() for each in islice(as_completed(tries, timeout=20), 4)]
        assert door.get("/rejected.json", authorization=f"Bearer {TOKEN}").status_code == 200, "the page goes on"
        going.set()
    assert not any(overlaps)
    assert [(each.status_code, each.headers["retry-after"]) for each in denied] == [(429, "5")] * 4


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"name=anna&name=ben&password=x", FORM_TYPE),
        (b"name=%ff&password=x", FORM_TYPE),
        (b"\xff\xfe", FORM_TYPE),
        (b'{"name": "anna"}', "application/json"),
        (b"&".join(b"a%d=1" % n for n in range(600)), FORM_TYPE),
        (b"name=" + b"x" * 70_000, FORM_TYPE),
        (b"", ""),
    ],
)
def test_a_body_that_is_no_form_is_refused_and_costs_nothing(
    door: Entrance, hashed: list[str], body: bytes, content_type: str
) -> None:
    sent = {"Sec-Fetch-Site": "same-origin", "Content-Type": content_type}
    assert door.send("POST", "/sign-in", sent, data=body).status_code in {400, 413}
    assert hashed == []
