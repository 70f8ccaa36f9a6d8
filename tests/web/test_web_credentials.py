"""Hashes, lines of the users and tokens files, cookies, limits and headers: the rules behind the door, alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inbox.config.types import Network
from inbox.errors import ConfigError
from relay.web.access import attempts
from relay.web.access import session as sessions
from relay.web.access.attempts import BY_NAME, AttemptLimit, Attempts, SignInLimits, network_of
from relay.web.access.credentials import (
    DEFAULT_COST,
    PasswordHash,
    check_token_hash,
    decoy,
    hash_password,
    hash_token,
    new_token,
)
from relay.web.access.entries import Entry, parse, with_entry, write_entry
from relay.web.access.requests import address_of, bearer_token, is_same_origin, local_path, named_by_proxy, values_of
from relay.web.access.session import EndedSessions, Session
from tests.helpers.signing_in import FAST, PASSWORD, behind_proxy, user

HASH = hash_password(PASSWORD, FAST)
LINE = f"anna:operator:{HASH.text}"
PEOPLE = parse(LINE, "users", PasswordHash.parse)
SESSION = Session("anna", "operator", 2_000, "n")


# --- hashes


def test_a_hash_tells_its_password_from_others_and_its_text_keeps_it() -> None:
    read = PasswordHash.parse(HASH.text)
    assert read.matches(PASSWORD)
    assert not any(read.matches(each) for each in ("", PASSWORD[:-1], PASSWORD + " ", PASSWORD.upper()))
    assert hash_password(PASSWORD, FAST).text != HASH.text, "the salt differs"


def test_both_ways_to_write_a_letter_with_an_accent_are_one_password() -> None:
    assert hash_password("caf\u00e9 au lait noir", FAST).matches("cafe\u0301 au lait noir")


@given(st.text(max_size=50))
def test_any_text_can_be_tried_as_a_password(password: str) -> None:
    assert HASH.matches(password) == (password == PASSWORD)
    assert not decoy(FAST).matches(password)


def test_a_new_hash_is_costly() -> None:
    assert DEFAULT_COST.memory >= 32 * 1024 * 1024
    assert hash_password(PASSWORD).text.startswith("$scrypt$ln=15,r=8,p=3$")


@pytest.mark.parametrize("password", ["", "eleven char", "x" * 1001])
def test_a_password_is_neither_short_nor_endless(password: str) -> None:
    with pytest.raises(ValueError, match="12 to 1000 characters"):
        hash_password(password, FAST)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", PASSWORD, HASH.text[:-1], HASH.text + "A", HASH.text.replace("scrypt", "argon2id"),
        HASH.text.replace("ln=2", "ln=99"), HASH.text.replace("ln=2", "ln=24"), HASH.text.replace("p=1", "p=99"),
        HASH.text.replace("r=1", "r=0"), HASH.text[:-1] + "=", HASH.text + "\n",
    ],
    ids=map(str, range(12)),  # the salt is random, and each process has to find the same tests
)  # fmt: skip
def test_what_is_no_hash_is_said_without_it(text: str) -> None:
    with pytest.raises(ValueError, match="hash") as raised:
        PasswordHash.parse(text)
    assert not text.strip() or text.strip() not in str(raised.value)


def test_no_hash_is_shown_by_a_value_that_is_printed() -> None:
    assert HASH.text not in repr(PEOPLE)
    assert HASH.digest.hex() not in repr(HASH)


def test_a_token_is_random_and_its_hash_says_nothing_of_it() -> None:
    assert new_token() != new_token()
    assert len(new_token()) > 40
    assert check_token_hash(hash_token("irw_x")).startswith("sha256$")
    with pytest.raises(ValueError, match="none of"):
        check_token_hash("irw_x")


# --- the files


def test_comments_blank_lines_and_line_ends_of_windows_say_nothing() -> None:
    found = parse(f"\ufeff# people\r\n\r\n  {LINE}  \r\n#x:y:z\n", "users", PasswordHash.parse)
    assert {name: entry.role for name, entry in found.items()} == {"anna": "operator"}


def test_each_wrong_line_is_named_by_its_number_and_none_is_repeated() -> None:
    wrong = ["anna", f"b:boss:{HASH.text}", f"b c:viewer:{HASH.text}", "d:viewer:secret", f":viewer:{HASH.text}", LINE]
    with pytest.raises(ConfigError) as raised:
        parse("\n".join([LINE, "", *wrong]), "/etc/users", PasswordHash.parse)
    lines = str(raised.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"/etc/users, line {number}" for number in range(3, 9)]
    assert "anna stands in line 1 already" in lines[-1]
    assert "secret" not in str(raised.value)
    assert HASH.text not in str(raised.value)


@given(st.text(max_size=80))
def test_any_text_is_a_file_or_a_mistake(text: str) -> None:
    try:
        found = parse(text, "users", PasswordHash.parse)
    except ConfigError:
        return
    assert all(entry.role in {"viewer", "operator"} for entry in found.values())


def test_a_line_takes_the_place_of_the_one_with_its_name() -> None:
    text = f"# a\n{user('ann')}{LINE}\n# z"
    changed = with_entry(text, "ann", "ann:viewer:x")
    assert changed.splitlines() == ["# a", "ann:viewer:x", LINE, "# z"]
    assert with_entry(text, "an", "an:viewer:x").splitlines()[-1] == "an:viewer:x"


def test_a_file_is_written_for_its_owner_alone_and_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "users", tmp_path / "link"
    link.symlink_to(file)
    write_entry(link, "anna", LINE, PasswordHash.parse)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    write_entry(link, "ben", user("ben").strip(), PasswordHash.parse)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "its group may be the service's"
    assert link.is_symlink()
    assert set(parse(file.read_text(), "users", PasswordHash.parse)) == {"anna", "ben"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "users"]


@pytest.mark.parametrize("content", [b"anna", b"\xff"])
def test_a_file_with_a_wrong_line_stays_as_it_was(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "users"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        write_entry(file, "anna", LINE, PasswordHash.parse)
    assert file.read_bytes() == content


# --- cookies


def test_a_cookie_gives_its_session_back_until_it_ends() -> None:
    cookie = sessions.write(SESSION, LINE)
    assert sessions.read(cookie, PEOPLE, 1_999) == SESSION
    assert sessions.read(cookie, PEOPLE, 2_000) is None


@given(st.data())
def test_no_bit_of_a_cookie_may_change(data: st.DataObject) -> None:
    cookie = sessions.write(SESSION, LINE)
    at = data.draw(st.integers(0, len(cookie) - 1))
    bit = data.draw(st.integers(0, 6))
    changed = cookie[:at] + chr(ord(cookie[at]) ^ (1 << bit)) + cookie[at + 1 :]
    assert sessions.read(changed, PEOPLE, 0) is None


@given(st.text(max_size=300))
def test_any_text_is_a_cookie_of_nobody(text: str) -> None:
    assert sessions.read(text, PEOPLE, 0) is None
    cookie = sessions.write(SESSION, LINE)
    assert sessions.read(text + cookie, PEOPLE, 0) is None or not text
    assert sessions.read(cookie + text, PEOPLE, 0) is None or not text


@given(name=st.sampled_from(["anna", "ben"]), role=st.sampled_from(["viewer", "operator"]), until=st.integers(0, 2**40))
def test_a_cookie_counts_only_with_the_line_that_it_was_made_with(name: str, role: str, until: int) -> None:
    made = Session(name, role, until, "n")  # type: ignore[arg-type]  # a role
    own = f"{name}:{role}:{HASH.text}"
    for line in (own, f"{own} ", user(name, role).strip()):
        entry = Entry(name, role, HASH, line)  # type: ignore[arg-type]  # a role
        read = sessions.read(sessions.write(made, own), {name: entry}, 0)
        assert read == (made if line == own and until > 0 else None)


def test_ended_sessions_take_little_memory_and_keep_those_that_would_last() -> None:
    ended = EndedSessions()
    kept = Session("anna", "operator", 10**9, "kept")
    for number in range(sessions.MOST_ENDED - 1):
        ended.end(Session("anna", "operator", 5, str(number)), 0)
    ended.end(kept, 0)
    ended.end(Session("anna", "operator", 20, "next"), 10)
    assert kept in ended
    assert len(ended._until) == 2
    for number in range(2 * sessions.MOST_ENDED):
        ended.end(Session("anna", "operator", 10**9, str(number)), 10)
    assert len(ended._until) == sessions.MOST_ENDED


# --- limits


def test_after_the_burst_there_is_one_attempt_for_each_pause() -> None:
    attempts = Attempts(AttemptLimit(burst=3, pause_seconds=10))
    for _ in range(3):
        assert attempts.wait_seconds("a", 0) == 0
        attempts.add("a", 0)
    assert attempts.wait_seconds("a", 0) == 10
    assert attempts.wait_seconds("a", 4) == pytest.approx(6)
    assert attempts.wait_seconds("a", 10) == 0
    assert attempts.wait_seconds("b", 0) == 0


@given(st.lists(st.floats(0, 60), max_size=300))
def test_whoever_keeps_trying_gets_no_more_than_the_limit(pauses: list[float]) -> None:
    limits, now, tried = SignInLimits(), 0.0, 0
    for pause in pauses:
        now += pause
        tried += limits.begin("anna", "192.0.2.1", now) == 0
    assert tried <= BY_NAME.burst + now / BY_NAME.pause_seconds + 1


def test_a_day_of_guessing_at_one_name_from_many_addresses_stays_within_its_limit() -> None:
    limits = SignInLimits()
    tried = sum(limits.begin("anna", f"192.0.{n % 256}.{n // 256 % 256}", float(n)) == 0 for n in range(86400))
    assert tried <= BY_NAME.burst + 86400 / BY_NAME.pause_seconds


def test_one_address_can_not_try_many_names_and_a_network_of_ipv6_is_one_address() -> None:
    limits = SignInLimits()
    assert sum(limits.begin(f"n{n}", f"2001:db8::{n:x}", 0.0) == 0 for n in range(1000)) == 30
    assert limits.begin("other", "2001:db8:0:1::1", 0.0) == 0


def test_a_denied_attempt_prolongs_nothing_and_a_right_one_costs_nothing() -> None:
    limits = SignInLimits()
    for _ in range(1000):
        limits.begin("anna", "192.0.2.1", 0.0)
    assert limits.begin("anna", "192.0.2.1", 30.0) == 0
    fresh = SignInLimits()
    for _ in range(1000):
        assert fresh.begin("anna", "192.0.2.1", 0.0) == 0
        fresh.succeeded("anna", "192.0.2.1", 0.0)


def test_the_names_and_addresses_of_strangers_take_little_memory() -> None:
    attempts = Attempts(BY_NAME, most=100)
    for number in range(1000):
        attempts.add(str(number), 0)
    assert len(attempts._used) == 100


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::7", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("a socket", "a socket"),
    ],
)  # fmt: skip
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


# --- headers


def headers(*given: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("utf-8", "surrogateescape")) for name, value in given]


PROXY = behind_proxy("192.0.2.0/24", "2001:db8::1")


@pytest.mark.parametrize("peer", ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8::1"])
def test_a_listed_proxy_names_a_person(peer: str) -> None:
    actor = named_by_proxy(headers(("x-forwarded-user", "anna")), peer, PROXY)
    assert actor is not None
    assert (actor.name, actor.role, actor.by) == ("anna", "operator", "proxy")


@pytest.mark.parametrize("peer", ["192.0.3.1", "2001:db8::2", "::1", "127.0.0.1", "", "nonsense", None])
def test_another_address_names_nobody(peer: str | None) -> None:
    assert named_by_proxy(headers(("x-forwarded-user", "anna")), peer, PROXY) is None


@pytest.mark.parametrize(
    "given",
    [
        (), (("x-forwarded-user", ""),), (("x-forwarded-user", "  "),),
        (("x-forwarded-user", "anna"), ("x-forwarded-user", "anna")),
        (("x-forwarded-user", "ben"), ("X-Forwarded-User", "anna")), (("x-forwarded-user", "x" * 201),),
        (("x-forwarded-user", "an\u202ena"),), (("x-forwarded-user", "an\x00na"),), (("x-forwarded-user", "\udcff"),),
        (("x_forwarded_user", "anna"),),
    ],
)  # fmt: skip
def test_a_header_that_is_no_single_name_names_nobody(given: tuple[tuple[str, str], ...]) -> None:
    assert named_by_proxy(headers(*given), "192.0.2.9", PROXY) is None


@given(st.text(max_size=300))
def test_only_the_listed_names_act(name: str) -> None:
    assume(name.strip() != "anna")
    actor = named_by_proxy([(b"x-forwarded-user", name.encode("utf-8", "replace"))], "192.0.2.9", PROXY)
    assert actor is None or (actor.role == "viewer" and actor.name.isprintable())


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=5))
def test_any_headers_can_be_read(given: list[tuple[bytes, bytes]]) -> None:
    assert bearer_token(given) is None
    assert not is_same_origin(given, "http://127.0.0.1:8025", None)
    assert all(isinstance(each, str) for name, _ in given for each in values_of(given, name.decode("latin-1")))


@pytest.mark.parametrize(
    ("given", "token"),
    [
        ((), None), (("Basic eDp5",), None), (("Bearer x",), "x"), (("bearer  x ",), "x"), (("Bearer",), ""),
        (("Bearer x", "Bearer x"), ""), (("Bearer x", "Basic y"), ""), (("Bearerx",), None),
    ],
)  # fmt: skip
def test_the_bearer_token(given: tuple[str, ...], token: str | None) -> None:
    assert bearer_token(headers(*(("Authorization", each) for each in given))) == token


@given(
    st.builds(
        "".join,
        st.lists(st.sampled_from(["/", "\\", "\t", "e", "%", "?", ":", "\u202e"]) | st.text(max_size=5), max_size=8),
    )
)
def test_a_path_to_go_on_to_stays_on_this_host(given: str) -> None:
    path = local_path(given)
    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))
    assert path.isascii()
    assert path.isprintable()


@pytest.mark.parametrize(
    "forwarded", [[], [b""], [b"unknown"], [b"10.0.0.1"], [b"192.0.2.1, x"], [b"192.0.2.1", b"\xff"]]
)
def test_a_header_without_an_address_leaves_the_proxys(forwarded: list[bytes]) -> None:
    headers = [(b"x-forwarded-for", value) for value in forwarded]
    proxies = [Network.parse("127.0.0.1"), Network.parse("10.0.0.0/8")]
    assert address_of(headers, "::ffff:127.0.0.1", proxies) == "::ffff:127.0.0.1"
    assert address_of(headers, None, proxies) == "a socket"


def test_the_places_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "MOST_REMEMBERED", 2)
    limits = SignInLimits()
    for place in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        assert limits.begin("anna", place, 0.0) == 0
        limits.succeeded("anna", place, 0.0)
    for _ in range(10):
        assert limits.begin("anna", "198.51.100.7", 0.0) == 0
    assert [limits.begin("anna", f"192.0.2.{n}", 0.0) for n in (1, 2, 3)] == [30, 0, 0]
