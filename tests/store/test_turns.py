"""Turns of a step's parts: what is free first, and who stays locked last."""

from __future__ import annotations

from collections.abc import Collection

from relay.store.turns import FORGOTTEN_SECONDS, BackOffs, Stalls, Turns
from tests.helpers.relaying import Monotonic


def done(turns: Turns[str], *, taken: Collection[str] = (), stalled: Collection[str] = ()) -> list[str]:
    """The parts in their order, as text: `?` was tried and taken, `!` waited in vain. `taken` are free for who waits."""
    told = []
    while some := turns.next():
        part = "".join(some)
        if set(part) & set(stalled) or (turns.tries and set(part) & set(taken)):
            told.append(part + ("?" if turns.tries else "!"))
            turns.keep_out(some, TimeoutError("locked"))
        else:
            told.append(part)
    return told


def turns_of(items: str, stalls: Stalls | None = None, *, enough: int = 2) -> Turns[str]:
    return Turns([list(items)], stalls or Stalls(), str.lower, enough)


def test_one_part_waits_and_is_not_tried() -> None:
    assert done(turns_of("aaa"), taken="a") == ["aaa"]
    assert done(turns_of("abc", enough=3), taken="b") == ["abc"]


def test_of_several_what_is_free_goes_first() -> None:
    assert done(turns_of("bbccaa"), taken="ab") == ["aa?", "bb?", "cc", "aa", "bb"]


def test_who_has_waited_in_vain_is_tried_route_by_route_and_next_time_goes_last_and_alone() -> None:
    stalls = Stalls()
    turns = turns_of("abc", stalls, enough=3)
    assert done(turns, stalled="b") == ["abc!", "abc?", "a", "b?", "c"]
    assert [item for item, _ in turns.left] == ["b"]
    assert done(turns_of("abcd", stalls, enough=3), stalled="b") == ["acd", "b?", "b!"]
    assert done(turns_of("b", stalls), stalled="b") == ["b!"]
    stalls.began("a")
    assert done(turns_of("abc", stalls, enough=3), stalled="b") == ["c", "ab?", "ab!", "ab?", "a", "b?"]
    stalls.ended("ab")
    assert done(turns_of("abc", stalls, enough=3)) == ["abc"]


def test_a_step_that_has_waited_enough_only_tries_the_rest() -> None:
    turns = turns_of("aabbccddee")
    told = done(turns, stalled="abcd", taken="e")
    assert told[:5] == ["aa?", "bb?", "cc?", "dd?", "ee?"]
    assert [part for part in told if part.endswith("!")] == ["aa!", "bb!", "cc!"]
    assert told[8:] == ["ddee?", "dd?", "ee?"]
    assert {item for item, _ in turns.left} == set("abcde")


def test_where_it_is_known_who_is_locked_the_others_go_on_and_many_cost_no_more_than_one() -> None:
    stalls, letters = Stalls(), "abcdefghijklmnopqrstuvwxyz"
    turns = turns_of(letters, stalls, enough=4)
    told = []
    while some := turns.next():
        part, locked = "".join(some), set(some) & set(letters[1:24])
        if not locked:
            told.append(part)
        else:
            told.append(part + ("?" if turns.tries else "!"))
            turns.keep_out(some, TimeoutError("locked"), {*some} - locked if turns.tries else None)
    assert told[:3] == ["abcd?", "a", "efgh?"]
    assert [part for part in told if "!" in part] == ["bcd!", "efgh!", "ijkl!"]
    assert told[-4:] == ["efgh?", "ijkl!", "mnopqrstuvwx?", "ijkl?"]
    assert set(told) >= {"yz"}
    assert {item for item, _ in turns.left} == turns.given_up.keys() == stalls.locked() == set(letters[1:24])


def test_without_routes_a_step_gives_up_when_it_has_waited_enough() -> None:
    turns = Turns([["a", "b"], ["c"], ["d"], ["e"]], Stalls())
    assert done(turns, stalled="abcde") == ["ab!", "c!", "d!"]


def test_a_route_is_stalled_from_a_wait_in_vain_until_it_is_granted_or_nobody_has_met_it_for_long() -> None:
    monotonic = Monotonic()
    stalls = Stalls(monotonic)
    stalls.began(["a"])
    monotonic.seconds = FORGOTTEN_SECONDS - 0.1
    stalls.began(["b"])
    assert stalls.has(["x", "a"])
    stalls.ended(["a"])
    assert not stalls.has(["a"])
    assert stalls.locked()
    monotonic.seconds += FORGOTTEN_SECONDS + 0.1
    assert not stalls.has(["b"])
    assert not stalls.locked()
    stalls.began(["a", "b"])
    stalls.all_ended()
    assert not stalls.locked()


def test_a_step_waits_longer_each_time_for_a_route_that_it_leaves_and_other_steps_do_not() -> None:
    monotonic = Monotonic()
    back_offs = BackOffs(monotonic)
    waits = []
    for _ in range(8):
        back_offs.began("record", ["a", "b"], 1.0)
        assert back_offs.of("record") == {"a", "b"}
        assert back_offs.of("reap") == set()
        began = monotonic.seconds
        while back_offs.of("record"):
            monotonic.seconds += 0.01
        waits.append(round(monotonic.seconds - began, 1))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    back_offs.ended("record", ["a"])
    monotonic.seconds += FORGOTTEN_SECONDS - 0.1
    back_offs.began("record", ["a", "b"])
    monotonic.seconds += 0.15
    assert back_offs.of("record") == {"b"}
    monotonic.seconds += FORGOTTEN_SECONDS + 1
    back_offs.began("record", ["b"])
    monotonic.seconds += 0.15
    assert back_offs.of("record") == set(), "what was left long ago does not count"
    assert back_offs.of("record", even_late=True) == {"b"}
    assert back_offs.of("reap", even_late=True) == set()
    back_offs.all_ended()
    assert back_offs.of("record", even_late=True) == set()


def test_what_nobody_tries_any_more_is_forgotten() -> None:
    monotonic = Monotonic()
    back_offs = BackOffs(monotonic)
    for number in range(1000):
        back_offs.began("record", [f"seq={number}"])
        monotonic.seconds += 1
    assert len(back_offs._until) <= FORGOTTEN_SECONDS + 2


def test_of_a_route_with_several_items_that_have_to_be_left_the_rest_is_not_tried() -> None:
    turns = turns_of("abababac", enough=1)
    tried = []
    while some := turns.next():
        tried.append("".join(some))
        if len(some) > 1:
            turns.halve(some)
        elif some[0] == "a":
            turns.leave(some[0], TimeoutError("row"), is_stalled=False)
    assert tried == ["aaaa", "aa", "a", "a", "aa", "a", "bbb", "b", "bb", "b", "b", "c"]
    assert [item for item, _ in turns.left] == ["a"] * 4
    assert list(turns.given_up) == ["a"]


def test_of_a_route_that_is_locked_while_an_item_is_set_aside_the_rest_is_not_tried() -> None:
    stalls = Stalls()
    turns = Turns([list("ababc")], stalls, str.lower, 5)
    turns.halve(turns.next())
    turns.halve(turns.next())
    (first,) = turns.next()
    turns.leave(first, TimeoutError("route"), is_stalled=True)
    assert first == "a"
    assert "a" not in {item for part in iter(turns.next, ()) for item in part}
    assert [item for item, _ in turns.left] == ["a", "a"]
    assert stalls.has(["a"])
