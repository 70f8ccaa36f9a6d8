"""Forms, and bodies with several events: read as the standard library reads them, without taking many times their size."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.config.sources import EventFields, Source
from inbox.errors import InvalidEvent, Unreadable
from inbox.sources import fields
from inbox.sources.fields import form_fields, form_payload
from inbox.sources.presets import adyen, custom, msgraph
from tests.sources.presenting import a_request, read

MIB = 1024 * 1024


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Python takes no more bytes than this at any time within the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


def test_the_part_that_a_thousand_items_share_is_found_once() -> None:
    """Hashed and searched for each of them, this body took half a minute, and every other large one waited."""
    found = custom.reader(
        Source(
            preset="custom",
            event=EventFields(type="body.type", items="body.items", entity_type="'X'", entity_id="body.all[-1:] | [0]"),
        )
    )
    items = b",".join(b'{"n":%d}' % number for number in range(1000))
    text = b'"%b"' % (b"x" * 20 * MIB)
    body = b'{"type":"x","text":%b,"items":[%b],"all":[%b"e"]}' % (text, items, b"1," * 100_000)
    began = time.process_time()
    identities = found(a_request("custom", body, {}), None)
    assert time.process_time() - began < 3
    assert len({identity.key_parts for identity in identities}) == 1000
    assert {identity.entity_id for identity in identities} == {"e"}


@given(st.lists(st.sampled_from(["a", "=", "&", "%", "%2", "%e2%82%ac", "%C3", "+", "%2B", "€", "%zz", "x" * 8])))
@example(["a=", "%22" * 6000, "&b=x", "%22" * 11_000])
@example(["x" * (16 * 1024 - 1), "%41", "=", "%", "4"])
def test_a_form_is_read_as_the_standard_library_reads_it(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        expected = parse_qsl(text, keep_blank_values=True, errors="strict")
    except ValueError:
        with pytest.raises(Unreadable):
            form_fields(text.encode())
    else:
        assert form_fields(text.encode()) == expected


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        (
            adyen.read_signed_parts,
            b'{"notificationItems": [%b]}' % b",".join([b'{"NotificationRequestItem":{}}'] * 200_000),
        ),
        (msgraph.client_states, b'{"value": [%b]}' % b",".join([b"{}"] * 200_000)),
    ],
)
def test_a_stranger_has_no_objects_made_of_many_small_values(parts: Callable[[bytes], object], body: bytes) -> None:
    """Each rejection looks for a proof in the body: of 25 MiB, two million notifications took 468 MiB and 3 to 10 s."""
    with at_most(3 * len(body)):
        assert not parts(body)


def test_a_form_may_have_a_hundred_fields() -> None:
    assert len(form_fields(b"&".join([b"a=1"] * 100))) == 100
    with pytest.raises(Unreadable):
        form_fields(b"&".join([b"a=1"] * 101))


@pytest.mark.parametrize("make", [lambda n: b"%22" * (n // 3), lambda n: b"x" * n, lambda n: b"+" * n])
def test_a_large_form_takes_little_more_than_itself_and_its_value(make: Callable[[int], bytes]) -> None:
    body = b"payload=" + make(MIB)
    with at_most(4 * MIB):
        form_payload(body)


@pytest.mark.parametrize("bare", [b"%", b"%zz", b"%4"])
def test_signs_of_percent_that_begin_nothing_are_left_as_they_are_but_not_very_many(bare: bytes) -> None:
    """The standard library raises and catches an error for each: 25 MiB of them took a thread for 13 s."""
    some, more = bare * fields.MOST_BARE, bare * (fields.MOST_BARE + 1)
    assert form_payload(b"payload=" + some) == some
    assert form_payload(b"payload=" + b"%25" * 20_000) == b"%" * 20_000
    for body in (b"payload=" + more, b"payload=" + b"x" * 100_000 + more, more + b"=x"):
        with pytest.raises(Unreadable, match="not quoted"):
            form_payload(body)


def test_the_envelope_of_many_events_is_not_copied_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    event = b'{"uuid": "u%d", "eventType": "user.lifecycle.create", "published": "2026-01-01T00:00:00Z"}'

    def batch(number: int, around: int) -> bytes:
        events = b",".join(event % n for n in range(number))
        return b'{"around": "%b", "data": {"events": [%b]}}' % (b"x" * around, events)

    assert len(read(a_request("okta", batch(1000, 300), {"content-type": "application/json"}))) == 1000
    monkeypatch.setattr(fields, "LARGEST_PARTS", MIB)
    with at_most(4 * MIB), pytest.raises(InvalidEvent, match="send fewer of them at once"):
        read(a_request("okta", batch(100, 100_000), {"content-type": "application/json"}))
