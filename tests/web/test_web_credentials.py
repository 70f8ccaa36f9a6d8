"""Hashes, lines of the users and tokens files, cookies, limits and headers: the rules behind the door, alone."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from falcon.asgi import Request
from falcon.testing import create_scope
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.values import Network, Secret
from inbox.errors import ConfigError
from relay.accounts import (
    AccountFile,
    Actor,
    Entry,
    hash_password,
    hash_token,
    is_password,
    new_token,
    parse_entries,
    write_entry,
)
from relay.web import guard
from relay.web.guard import (
    BY_NAME,
    Sessions,
    SignInLimits,
    bearer_token,
    find_address,
    get_network,
    is_own_host,
    is_same_origin,
    local_path,
    read_proxy_actor,
)
from tests.helpers.page import FAST, PASSWORD, behind_proxy, user

HASH = hash_password(PASSWORD, FAST)
LINE = f"anna:operator:{HASH}"
PEOPLE = parse_entries(LINE, "users", "users")
ANNA = PEOPLE["anna"]


# --- hashes


def test_a_hash_tells_its_password_from_others() -> None:
    assert is_password(PASSWORD, HASH)
    assert not any(is_password(each, HASH) for each in ("", PASSWORD[:-1], PASSWORD + " ", PASSWORD.upper()))
    assert hash_password(PASSWORD, FAST) != HASH, "the salt differs"
    assert is_password("cafe\u0301 au lait noir", hash_password("caf\u00e9 au lait noir", FAST)), "two ways to write é"
    assert HASH not in repr(PEOPLE)


def test_a_password_that_normalises_slowly_is_cut_before_that() -> None:
    """Sorting combining marks takes quadratic time and blocks all other threads."""
    marks = "\u0301" * 60_000 + "\u0316" * 60_000
    began = time.process_time()
    assert not is_password(marks, HASH)
    assert time.process_time() - began < 1


def test_a_new_hash_is_costly() -> None:
    made = hash_password(PASSWORD)
    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert parse_entries(f"anna:viewer:{made}", "users", "users")


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 1001])
def test_a_password_is_neither_short_nor_endless(password: str) -> None:
    with pytest.raises(ValueError, match="12 to 1000 characters"):
        hash_password(password, FAST)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", PASSWORD, HASH[:-1], HASH + "A", HASH.replace("argon2id", "argon2i"), HASH.replace("m=8,", "m=9999999,"),
        HASH.replace("t=1,", "t=999,"), HASH[:-1] + "=", HASH[:-1] + "B", hash_token("irw_x"),
    ],
    ids=map(str, range(11)),  # the salt is random, and each process must collect the same tests
)  # fmt: skip
def test_a_malformed_hash_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigError, match="the hash was not made by `relay web passwd`") as raised:
        parse_entries(f"anna:viewer:{text}", "users", "users")
    assert len(text) < 2 or text not in str(raised.value)


def test_tokens_are_random_and_stored_as_hashes() -> None:
    assert new_token() != new_token()
    assert len(new_token()) > 40
    assert parse_entries(f"script:viewer:{hash_token('irw_x')}", "tokens", "tokens")
    with pytest.raises(ConfigError, match="was not made by"):
        parse_entries("script:viewer:irw_x", "tokens", "tokens")


# --- the files


def test_comments_blank_lines_and_windows_line_ends_are_ignored() -> None:
    found = parse_entries(f"\ufeff# people\r\n\r\n  {LINE}  \r\n#x:y:z\n", "users", "users")
    assert {name: entry.role for name, entry in found.items()} == {"anna": "operator"}


def test_wrong_lines_are_named_by_number_without_their_text() -> None:
    wrong = ["anna", f"b:boss:{HASH}", f"b c:viewer:{HASH}", "d:viewer:secret", f":viewer:{HASH}", LINE]
    with pytest.raises(ConfigError) as raised:
        parse_entries("\n".join([LINE, "", *wrong]), "/etc/users", "users")
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"/etc/users, line {number}" for number in range(3, 9)]
    assert "anna is already in line 1" in lines[-1]
    assert "secret" not in str(raised.value)
    assert HASH not in str(raised.value)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = parse_entries(text, "users", "users")
    except ConfigError:
        return
    assert all(entry.role in {"viewer", "operator"} for entry in found.values())


@pytest.mark.parametrize(
    "text",
    [f"# a\n{{}}{LINE}\n# z", f"\ufeff{LINE}\n{{}}", f"# a\u2028b\x0cc\n{LINE}\n{{}}", f"\n{LINE}\n\n{{}}"],
    ids=map(str, range(4)),  # the salt is random
)
def test_a_line_replaces_the_one_of_the_same_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "users"
    file.write_text(text.format(user("ann")), encoding="utf-8")
    write_entry(file, "anna", user("anna", "viewer").strip(), "users")
    write_entry(file, "an", user("an").strip(), "users")
    whole = file.read_text(encoding="utf-8")
    roles = [(name, entry.role) for name, entry in parse_entries(whole, "users", "users").items()]
    assert sorted(roles) == [("an", "operator"), ("ann", "operator"), ("anna", "viewer")]
    assert ("# a" in whole, "# z" in whole) == ("# a" in text, "# z" in text)


def test_a_file_is_private_to_its_owner_and_a_link_stays_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "users", tmp_path / "link"
    link.symlink_to(file)
    write_entry(link, "anna", LINE, "users")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    write_entry(link, "ben", user("ben").strip(), "users")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "the group may be the service's"
    assert link.is_symlink()
    assert set(parse_entries(file.read_text(), "users", "users")) == {"anna", "ben"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "users"]


def test_writers_wait_for_each_other_and_readers_see_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(LINE + "\n")
    read = AccountFile(Secret(f"file:{file}"), "users")
    names = [f"p{n}" for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        writing = [
            pool.submit(write_entry, file, name, user(name, role).strip(), "users")
            for role in ("operator", "viewer")  # a shorter line replaces a longer one
            for name in names
        ]
        while not all(each.done() for each in writing):
            assert "anna" in asyncio.run(read.entries(fresh=True))
    for each in writing:
        each.result()
    assert asyncio.run(read.entries(fresh=True)).keys() == {"anna", *names}


def test_a_full_disk_does_not_change_the_file(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(LINE + "\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(LINE) + 20, before[1]))
    try:
        with pytest.raises(ConfigError, match="can't write"):
            write_entry(file, "new", user("new", "viewer").strip(), "users")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text().strip() == LINE


@pytest.mark.parametrize("content", [b"anna", b"\xff"])
def test_a_file_with_a_wrong_line_is_not_changed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "users"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        write_entry(file, "anna", LINE, "users")
    assert file.read_bytes() == content


# --- cookies


def test_a_cookie_identifies_its_person_until_it_expires() -> None:
    sessions = Sessions()
    cookie = sessions.begin(ANNA, 1_000)
    assert sessions.find_person(cookie, PEOPLE, 1_000, 60) == ANNA
    assert sessions.find_person(cookie, PEOPLE, 1_059.9, 60) == ANNA
    assert sessions.find_person(cookie, PEOPLE, 1_060, 60) is None
    assert sessions.find_person(cookie, PEOPLE, 900, 60) is None, "a cookie from the future"


SESSIONS = Sessions()
COOKIE = SESSIONS.begin(ANNA, 1_000)


@given(st.integers(0, len(COOKIE) - 1), st.integers(0, 6), st.text(max_size=300))
def test_any_other_text_is_an_invalid_cookie(at: int, bit: int, text: str) -> None:
    changed = COOKIE[:at] + chr(ord(COOKIE[at]) ^ (1 << bit)) + COOKIE[at + 1 :]
    for given_cookie in {changed, text, text + COOKIE, COOKIE + text} - {COOKIE}:
        assert SESSIONS.find_person(given_cookie, PEOPLE, 1_000, 60) is None


@given(name=st.sampled_from(["anna", "ben"]), role=st.sampled_from(["viewer", "operator"]))
def test_a_cookie_is_valid_only_with_the_line_it_was_made_with(name: str, role: str) -> None:
    own = f"{name}:{role}:{HASH}"
    for line in (own, f"{own} ", user(name, role).strip()):
        made, kept = (Entry(name, role, HASH, each) for each in (own, line))  # type: ignore[arg-type]  # a role
        read = SESSIONS.find_person(SESSIONS.begin(made, 1_000), {name: kept}, 1_000, 60)
        assert read == (kept if line == own else None)


def test_each_process_signs_cookies_with_its_own_random_key() -> None:
    assert Sessions().find_person(COOKIE, PEOPLE, 1_000, 60) is None


def test_a_sign_out_ends_all_sessions_of_the_person_and_no_others() -> None:
    sessions, ben = Sessions(), Entry("ben", "viewer", HASH, f"ben:viewer:{HASH}")
    people = {"anna": ANNA, "ben": ben}
    cookies = [sessions.begin(each, 1_000) for each in (ANNA, ANNA, ben)]
    sessions.end("anna")
    assert [sessions.find_person(each, people, 1_000, 60) for each in cookies] == [None, None, ben]
    assert sessions.find_person(sessions.begin(ANNA, 1_000), people, 1_000, 60) == ANNA


def test_a_sign_out_in_one_worker_counts_in_later_ones() -> None:
    sessions, fork = Sessions(), multiprocessing.get_context("fork")
    cookie = sessions.begin(ANNA, 1_000)
    worker = fork.Process(target=sessions.end, args=("anna",))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    assert sessions.find_person(cookie, PEOPLE, 1_000, 60) is None


# --- limits


def attempt(limits: SignInLimits, name: str, address: str, now: float, *, is_right: bool = False) -> float:
    """Make an attempt that takes no time; return the required wait in seconds, 0 if it was allowed."""
    keys, wait = limits.begin(name, address, now)
    if not wait and is_right:
        limits.forgive(keys, name, address)
    return wait


def test_after_the_burst_each_pause_allows_one_attempt() -> None:
    limits = SignInLimits()
    assert [attempt(limits, "anna", f"192.0.2.{n}", 0) for n in range(11)] == [0.0] * 10 + [30.0]
    assert attempt(limits, "anna", "192.0.2.1", 12) == pytest.approx(18)
    assert attempt(limits, "anna", "192.0.2.1", 30) == 0
    assert attempt(limits, "ben", "192.0.2.1", 0) == 0


@given(st.lists(st.floats(0, 60), max_size=300))
def test_continued_guessing_never_exceeds_the_limit(pauses: list[float]) -> None:
    limits, now, tried = SignInLimits(), 0.0, 0
    for pause in pauses:
        now += pause
        tried += attempt(limits, "anna", "192.0.2.1", now) == 0
    assert tried <= BY_NAME.burst + now / BY_NAME.pause_seconds + 1


def test_denied_attempts_do_not_prolong_the_wait_and_right_ones_cost_nothing() -> None:
    limits = SignInLimits()
    for _ in range(1000):
        attempt(limits, "anna", "192.0.2.1", 0.0)
    assert attempt(limits, "anna", "192.0.2.1", 30.0) == 0
    fresh = SignInLimits()
    for _ in range(1000):
        assert attempt(fresh, "anna", "192.0.2.1", 0.0, is_right=True) == 0


def test_a_failure_is_forgotten_once_it_no_longer_counts() -> None:
    limits = SignInLimits()
    for _ in range(10):
        attempt(limits, "anna", "192.0.2.1", 0)
    for number in range(500):
        attempt(limits, f"n{number}", f"2001:db8:{number:x}::1", 0)
    assert attempt(limits, "anna", "192.0.2.2", 0) == 30, "other names and addresses displace no entry"
    attempt(limits, "later", "192.0.2.2", 301)
    assert len(limits._over) == 2


def test_attackers_do_not_lock_a_person_out_of_a_known_address() -> None:
    limits = SignInLimits()
    assert attempt(limits, "anna", "192.0.2.1", 0.0, is_right=True) == 0
    for number in range(40):
        attempt(limits, "anna", "198.51.100.7", 0.0)
        attempt(limits, f"n{number}", "192.0.2.1", 0.0)
    limits.waiting = guard.MOST_WAITING
    assert attempt(limits, "w", "203.0.113.1", 0.0) == 5
    assert attempt(limits, "anna", "192.0.2.1", 0.0, is_right=True) == 0
    limits.waiting -= 1
    assert attempt(limits, "anna", "192.0.2.2", 0.0) > 0
    assert attempt(limits, "w", "203.0.113.1", 0.0) == 0, "denied attempts do not count"


def test_the_remembered_addresses_of_a_person_are_bounded() -> None:
    limits = SignInLimits()
    for number in range(guard.MOST_PLACES + 1):
        assert attempt(limits, "anna", f"192.0.2.{number}", 0.0, is_right=True) == 0
    for _ in range(10):
        assert attempt(limits, "anna", "198.51.100.7", 0.0) == 0
    assert [attempt(limits, "anna", f"192.0.2.{n}", 0.0) for n in (0, 1, 100)] == [30, 0, 0]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::7", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("a socket", "a socket"),
    ],
)  # fmt: skip
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert get_network(address) == network


# --- headers


def make_request(*given: tuple[str, str], peer: str | None = "192.0.2.9") -> Request:
    """Make a request with these headers from address `peer`; None means a Unix socket."""
    sent = [(name.lower().encode(), value.encode("utf-8", "surrogateescape")) for name, value in given]
    scope = {**create_scope(), "headers": sent, "client": None if peer is None else (peer, 4711)}
    return Request(scope, None)  # type: ignore[arg-type]  # nothing reads its body


PROXY = behind_proxy("192.0.2.0/24", "2001:db8::1")


@pytest.mark.parametrize(
    ("peer", "is_listed"),
    [
        *((peer, True) for peer in ("192.0.2.9", "::ffff:192.0.2.9", "2001:db8::1")),
        *((peer, False) for peer in ("192.0.3.1", "2001:db8::2", "::1", "127.0.0.1", "", "nonsense", None)),
    ],
)
def test_only_a_listed_proxy_names_a_person(peer: str | None, is_listed: bool) -> None:
    actor = read_proxy_actor(make_request(("x-forwarded-user", "anna"), peer=peer), PROXY)
    assert actor == (Actor("anna", "operator", "proxy") if is_listed else None)


@pytest.mark.parametrize(
    "given",
    [
        (), ("",), ("  ",), ("anna", "anna"), ("ben", "anna"), ("x" * 201,), ("an\u202ena",), ("an\x00na",), ("\udcff",),
    ],
)  # fmt: skip
def test_a_header_without_exactly_one_name_is_ignored(given: tuple[str, ...]) -> None:
    assert read_proxy_actor(make_request(*(("x-forwarded-user", each) for each in given)), PROXY) is None
    assert read_proxy_actor(make_request(("x_forwarded_user", "anna")), PROXY) is None


def test_a_repeated_header_does_not_prove_the_origin() -> None:
    for name, own in (("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:8025")):
        assert is_same_origin(make_request((name, own)), "http://127.0.0.1:8025")
        assert not is_same_origin(make_request((name, own), (name, "evil")), "http://127.0.0.1:8025")


@pytest.mark.parametrize(
    ("given", "token"),
    [
        ((), None), (("Basic eDp5",), None), (("Bearer x",), "x"), (("bearer  x ",), "x"), (("Bearerx",), None),
        (("Bearer x", "Bearer x"), "x,Bearer x"), (("Bearer x", "Basic y"), "x,Basic y"),
    ],
)  # fmt: skip
def test_the_bearer_token_of_a_request(given: tuple[str, ...], token: str | None) -> None:
    """Repeated headers never become a valid token."""
    assert bearer_token(make_request(*(("Authorization", each) for each in given))) == token


@given(
    st.builds(
        "".join,
        st.lists(st.sampled_from(["/", "\\", "\t", "e", "%", "?", ":", "\u202e"]) | st.text(max_size=5), max_size=8),
    )
)
def test_the_path_after_a_sign_in_stays_on_this_host(given: str) -> None:
    path = local_path(given)
    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))
    assert path.isascii()
    assert path.isprintable()


@pytest.mark.parametrize("forwarded", [[], [""], ["unknown"], ["10.0.0.1"], ["192.0.2.1, x"], ["192.0.2.1", "\udcff"]])
def test_a_header_without_an_address_keeps_that_of_the_proxy(forwarded: list[str]) -> None:
    sent = [("x-forwarded-for", value) for value in forwarded]
    proxies = [Network.parse("127.0.0.1"), Network.parse("10.0.0.0/8")]
    assert find_address(make_request(*sent, peer="::ffff:127.0.0.1"), proxies) == "::ffff:127.0.0.1"
    assert find_address(make_request(*sent, peer=None), proxies) == "a socket"


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8025", True), ("[::1]:8025", True), ("10.0.0.7:80", True), ("localhost:8025", True),
        ("LocalHost", True), ("relay.example.com", True), ("Relay.Example.com:443", True), ("evil.example", False),
        ("relay.example.com.evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
        ("127.1", False), ("", False), ("user@127.0.0.1", False), ("127.0.0.1:80:80", False), ("[::1", False),
        ("127.0.0.1:x", False), ("\uff11\uff12\uff17.0.0.1", False), ("1" * 10_000, False),
    ],
)  # fmt: skip
def test_the_page_answers_only_to_its_own_names(host: str, is_own: bool) -> None:
    assert is_own_host(make_request(("host", host)), "https://relay.example.com:8443") is is_own
    assert not is_own_host(make_request(("host", host), ("host", host)), "https://relay.example.com")
    assert not is_own_host(make_request(("host", "relay.example.com")), None)
