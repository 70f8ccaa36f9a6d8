"""Access to the page by password, token or proxy, and every reason for a refusal."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
import requests

from inbox.config.model import Config
from relay.web.guard import Sessions
from tests.helpers.page import (
    OTHER_PASSWORD,
    PASSWORD,
    TOKEN,
    VIEWER_TOKEN,
    Entrance,
    behind_proxy,
    entrance,
    user,
)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def cookie_header(answer: requests.Response) -> str:
    return answer.headers["set-cookie"]


# --- people


def test_a_new_visitor_signs_in_and_gets_the_requested_page(door: Entrance) -> None:
    refused = door.get("/rejected?error=a%26b&since=2d")
    assert (refused.status_code, refused.text) == (303, "")
    location = refused.headers["location"]
    assert location == f"/sign-in?next={quote('/rejected?error=a%26b&since=2d', safe='')}"
    form = door.get(location)
    assert form.status_code == 200
    assert 'value="/rejected?error=a%26b&amp;since=2d"' in form.text
    signed_in = door.sign_in(following="/rejected?error=a%26b&since=2d")
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/rejected?error=a%26b&since=2d")
    shown = door.get("/rejected?error=a%26b&since=2d")
    assert shown.status_code == 200
    assert "anna" in shown.text


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(door: Entrance) -> None:
    parts = {part.strip().lower() for part in cookie_header(door.sign_in()).split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= parts
    assert not any(part.startswith("domain") for part in parts)
    assert "secure" not in parts  # a browser would drop it on plain HTTP


def test_behind_https_the_cookie_is_secure_and_of_this_host_alone(page_config: Config, tmp_path: Path) -> None:
    with entrance(page_config, tmp_path, origin="https://relay.example.com") as door:
        given = cookie_header(door.sign_in())
    assert given.startswith("__Host-inbox-relay=")
    assert "; secure" in given.lower()


@pytest.mark.parametrize(
    ("name", "password"),
    [("anna", "wrong password"), ("anna", ""), ("unknown", PASSWORD), ("", PASSWORD), ("veikko", PASSWORD)],
)
def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(door: Entrance, name: str, password: str) -> None:
    answer = door.sign_in(name, password)
    assert answer.status_code == 401
    assert "The name or the password is wrong" in answer.text
    assert "set-cookie" not in answer.headers
    assert password == "" or password not in answer.text
    assert door.get("/rejected").status_code == 303


def test_signing_out_ends_the_session_on_the_server_too(door: Entrance) -> None:
    door.sign_in()
    assert "Clear-Site-Data" not in door.get("/rejected").headers
    kept = dict(door.browser.cookies)
    answer = door.post("/sign-out")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert answer.headers["Clear-Site-Data"] == '"cache"'
    assert dict(door.browser.cookies) == {}
    door.browser.cookies.update(kept)  # a thief's copy
    assert door.get("/rejected").status_code == 303


def test_a_sign_out_lasts_over_a_reload(page_config: Config, tmp_path: Path) -> None:
    sessions = Sessions()  # owned by gunicorn's master, and kept over reloads
    with entrance(page_config, tmp_path, sessions=sessions) as door:
        door.sign_in()
        kept = dict(door.browser.cookies)
        door.post("/sign-out")
    lines = (tmp_path / "users").read_text()
    with entrance(page_config, tmp_path, sessions=sessions) as door:
        door.users.write_text(lines)
        door.browser.cookies.update(kept)
        assert door.get("/rejected").status_code == 303
        door.browser.cookies.clear()
        assert door.sign_in().status_code == 303
        assert door.get("/rejected").status_code == 200


def test_a_session_ends_after_its_time(door: Entrance) -> None:
    door.sign_in()
    door.browser.cookies.clear_expired_cookies = lambda: None  # type: ignore[method-assign]  # the browser has a real clock
    door.later(12 * 3600 - 1)
    assert door.get("/rejected").status_code == 200
    door.later(1)
    assert door.get("/rejected").status_code == 303


def test_a_signed_in_person_skips_the_form(door: Entrance) -> None:
    door.sign_in()
    answer = door.get("/sign-in?next=/rejected")
    assert (answer.status_code, answer.headers["location"]) == (303, "/rejected")


def test_a_link_from_another_site_reloads_so_that_the_cookie_is_sent(door: Entrance) -> None:
    assert door.get("/sign-in?next=/", sec_fetch_site="cross-site").headers["refresh"] == "0"
    assert "refresh" not in door.get("/sign-in?next=/", sec_fetch_site="same-origin").headers


@pytest.mark.parametrize(
    "following",
    [
        "https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "/\n/evil.example",
        "evil.example", "javascript:alert(1)", "", "/sign-in", "/sign-out?x=1", "/" + "x" * 5000, " /rejected", "/\x00",
    ],
)  # fmt: skip
def test_signing_in_never_leads_to_another_host(door: Entrance, following: str) -> None:
    assert door.sign_in(following=following).headers["location"] == "/"
    door.browser.cookies.clear()
    assert 'name="next" value="/"' in door.get(f"/sign-in?next={quote(following)}").text


# --- changes of the users file


@pytest.mark.parametrize(
    "content",
    [user("veikko"), user("anna", password=OTHER_PASSWORD), user("anna", "viewer"), "# no user\n"],
    ids=["removed", "new password", "other role", "no user left"],
)
def test_a_change_of_the_users_file_ends_the_session_within_seconds(door: Entrance, content: str) -> None:
    door.sign_in()
    assert door.get("/rejected").status_code == 200
    door.users.write_text(content)
    door.later(2)
    assert door.get("/rejected").status_code == 303


def test_changes_of_other_users_do_not_end_a_session(door: Entrance) -> None:
    door.sign_in()
    anna = next(line for line in door.users.read_text().splitlines() if line.startswith("anna:"))
    door.users.write_text(f"{anna}\n{user('new')}")
    door.later(2)
    assert door.get("/rejected").status_code == 200
    assert door.sign_in("new").status_code == 303


def test_a_sign_in_reads_the_file_at_once(door: Entrance) -> None:
    door.sign_in()
    door.users.write_text(user("late"))
    assert door.sign_in("late").status_code == 303
    assert door.sign_in("anna").status_code == 401


@pytest.mark.parametrize(
    "content", ["anna", "anna:boss:x", None, "\xff", ""], ids=["line", "role", "gone", "latin", "empty"]
)
def test_an_unusable_users_file_admits_no_user_and_only_the_log_shows_why(
    door: Entrance, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    door.sign_in()
    before = door.users.read_bytes()
    if content is None:
        door.users.unlink()
    else:
        door.users.write_bytes(content.encode("latin-1"))
    door.later(2)
    for answer in (door.get("/rejected"), door.sign_in()):
        assert answer.status_code == 503
        assert str(door.users) not in answer.text
    assert len([each for each in caplog.messages if str(door.users) in each]) == 1
    assert door.get("/rejected", **bearer(TOKEN)).status_code == 200  # tokens are in another file
    door.users.write_bytes(before)
    door.later(2)
    assert door.get("/rejected").status_code == 200


# --- programs


def test_programs_use_tokens(door: Entrance) -> None:
    assert door.get("/rejected.json", **bearer(TOKEN)).status_code == 200
    assert door.get("/api/v1/rejected", **bearer(VIEWER_TOKEN)).status_code == 200


@pytest.mark.parametrize(
    "given",
    [
        "Bearer irw_unknown", "Bearer", "Bearer ", f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Token {TOKEN}",
        "Basic eDp5", None,
    ],
)  # fmt: skip
def test_a_program_without_a_valid_token_gets_401_and_the_scheme(door: Entrance, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    answer = door.get("/api/v1/rejected", **headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["cause"] == "sign_in_needed"
    assert given is None or TOKEN not in answer.text


def test_a_session_does_not_excuse_a_wrong_token(door: Entrance) -> None:
    door.sign_in()
    assert door.get("/rejected", **bearer("irw_wrong")).status_code == 401


def test_a_removed_token_is_refused_within_seconds(door: Entrance) -> None:
    assert door.get("/rejected.json", **bearer(TOKEN)).status_code == 200
    door.tokens.write_text("# none\n")
    door.later(2)
    assert door.get("/rejected.json", **bearer(TOKEN)).status_code == 401


# --- proxies


def test_a_listed_proxy_names_the_person(page_config: Config, tmp_path: Path) -> None:
    proxy = behind_proxy("127.0.0.0/8")
    with entrance(page_config, tmp_path, users=None, tokens=None, proxy=proxy) as door:
        assert "anna <small>operator</small>" in door.get("/rejected", x_forwarded_user="anna").text
        assert "ben <small>viewer</small>" in door.get("/rejected", x_forwarded_user="ben").text
        assert "Sign out" not in door.get("/rejected", x_forwarded_user="ben").text
        without = door.get("/rejected")
        assert (without.status_code, "use the proxy" in without.text) == (401, True)
        assert door.get("/sign-in").status_code == 404


def test_the_header_of_an_unlisted_address_is_ignored(page_config: Config, tmp_path: Path) -> None:
    with entrance(page_config, tmp_path, users=None, tokens=None, proxy=behind_proxy("192.0.2.1")) as door:
        for claimed in (
            {},
            {"x_forwarded_for": "192.0.2.1"},
            {"x_forwarded_for": "192.0.2.1:5"},
            {"x_real_ip": "192.0.2.1"},
            {"forwarded": "for=192.0.2.1"},
        ):
            assert door.get("/rejected", x_forwarded_user="anna", **claimed).status_code == 401


# --- limits of roles and of other sites


UNSAFE = ["POST", "PUT", "PATCH", "DELETE", "TRACE"]


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize(
    "path",
    ["/acts/replay", "/api/v1/acts/replay", "/rejected/1/readmit", "/commands/1/stop", "/events/1/reveal/x", "/nothing"],
)  # fmt: skip
def test_a_viewer_changes_nothing_by_any_method(door: Entrance, method: str, path: str) -> None:
    door.sign_in("veikko", OTHER_PASSWORD)
    assert door.send(method, path, {"Sec-Fetch-Site": "same-origin"}).status_code == 403
    assert door.send(method, path, bearer(VIEWER_TOKEN)).status_code == 403


@pytest.mark.parametrize("path", ["/events/1/reveal", "/api/v1/events/1/reveal", "/sign-out"])
def test_a_viewer_may_reveal_and_sign_out(door: Entrance, path: str) -> None:
    door.sign_in("veikko", OTHER_PASSWORD)
    assert door.post(path).status_code != 403


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{own}"}, False),
        ({"Sec-Fetch-Site": "same-origin, same-origin"}, False),
        ({"Origin": "{own}"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "{own}.evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Referer": "{own}/"}, False),
        ({}, False),
    ],
)
def test_an_act_needs_a_page_of_this_site(door: Entrance, headers: dict[str, str], may: bool) -> None:
    door.sign_in()
    sent = {name: value.replace("{own}", door.url) for name, value in headers.items()}
    answer = door.send("POST", "/nothing", sent)
    assert answer.status_code == (404 if may else 403)
    form = {"name": "anna", "password": PASSWORD}
    assert door.send("POST", "/sign-in", sent, data=form).status_code == (303 if may else 403)  # a sign-in too


def test_the_configured_origin_counts_behind_a_proxy(page_config: Config, tmp_path: Path) -> None:
    with entrance(page_config, tmp_path, origin="https://relay.example.com") as door:
        same = door.send("POST", "/sign-in", {"Origin": "https://relay.example.com"}, data={"name": "x"})
        assert same.status_code == 401
        other = door.send("POST", "/sign-in", {"Origin": "https://evil.example.com"}, data={"name": "x"})
        assert other.status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8025", "127.0.0.1.evil.example", ""])
def test_dns_rebinding_shows_nothing(page_config: Config, tmp_path: Path, host: str) -> None:
    """The attacker's name points to the proxy, so the script has the page's origin."""
    with entrance(page_config, tmp_path, proxy=behind_proxy("127.0.0.1")) as door:
        rebound = {"Host": host, "X-Forwarded-User": "anna", "Sec-Fetch-Site": "same-origin"}
        for method, path in (
            ("GET", "/rejected"),
            ("GET", "/sign-in"),
            ("POST", "/events/1/reveal"),
            ("POST", "/acts/pause"),
        ):
            answer = door.send(method, path, rebound)
            assert (answer.status_code, "name that the browser used" in answer.text) == (403, True)
        assert door.get("/rejected", host="localhost", x_forwarded_user="anna").status_code == 200
        assert door.get("/rejected.json", host="web.default.svc", **bearer(TOKEN)).status_code == 200


def test_the_page_behind_https_answers_to_its_origin_with_hsts(page_config: Config, tmp_path: Path) -> None:
    with entrance(page_config, tmp_path, origin="https://relay.example.com") as door:
        answer = door.get("/sign-in", host="relay.example.com")
        assert (answer.status_code, answer.headers["strict-transport-security"]) == (200, "max-age=31536000")
    with entrance(page_config, tmp_path) as door:
        assert "strict-transport-security" not in door.get("/sign-in").headers


def test_a_token_needs_no_origin_as_no_browser_sends_it_unasked(door: Entrance) -> None:
    assert door.send("POST", "/nothing", bearer(TOKEN)).status_code == 404


def test_a_form_sent_after_the_session_is_answered_with_advice_instead_of_a_redirect(door: Entrance) -> None:
    answer = door.post("/acts/replay", {"reason": "r"})
    assert (answer.status_code, "sign in in another tab" in answer.text) == (401, True)


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/rejected", "/sign-out", "/static/../rejected", "//rejected", "/health/livex", "/RejecteD"],
)
def test_every_path_needs_access_even_unknown_ones(door: Entrance, path: str) -> None:
    answer = door.get(path)
    assert answer.status_code in {303, 401, 404, 405}
    assert "<nav" not in answer.text
