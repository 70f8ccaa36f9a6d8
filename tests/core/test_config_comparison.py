"""The effect of a new configuration on one event or several, without a database and without a call."""

from __future__ import annotations

import json

import msgspec
import pytest

from inbox.errors import ConfigError
from inbox.events.event import swept_key
from inbox.events.timestamps import to_nanoseconds
from inbox.loader.load import parse_config
from relay.comparison.compare import Comparison
from relay.comparison.differences import OTHERS, ConfigDifference, Groups
from relay.comparison.lanes import SeenKeys
from relay.comparison.reading import Payload
from relay.comparison.settings import other_settings
from tests.helpers.comparing import CONFIG, arrived, briefly, changed, compared, events_of, order

ERP, CHAT = "orders-to-erp", "orders-to-chat"
READS = 'entity_id = "body.order"'


def test_the_same_configuration_makes_no_difference() -> None:
    found, comparison = compared(CONFIG, order(state="new"), order(8, "sent", 1))
    assert found == []
    assert comparison.counts.events == 2
    assert comparison.counts.stored_otherwise.count == 0


@pytest.mark.parametrize(
    "change",
    [
        ('text = "{event.entity_id} is', 'text = "{ event.entity_id } is'),
        ("[destinations.chat]", "[destinations.chat]\ntimeout = '3s'"),
        ("destinations.erp]", "destinations.erp]\nauth = { kind = 'bearer', token = 'env:T' }"),
        ('total = "entity.total"', 'total = "entity.total" }\nskip_unchanged = false #'),
    ],
)
def test_settings_that_change_no_request_make_no_difference(change: tuple[str, str]) -> None:
    assert compared(changed(change), order(state="new"))[0] == []


def test_an_event_is_newly_routed_or_not_any_more() -> None:
    found, _ = compared(changed(('["paid"]', '["sent"]')), order(state="x"), order(8, "sent", 1, state="y"))
    assert briefly(found) == [("added", CHAT, None, None, None), ("removed", CHAT, None, None, None)]
    assert [each.seq for each in found] == [2, 1]


def test_a_new_route_is_tried_with_each_event_that_it_takes() -> None:
    new = CONFIG + '[routes.again]\nsource = "shop"\ndestination = "chat"\n'
    found, _ = compared(new, order(state="x"), order(8, second=1))
    assert briefly(found) == [
        ("added", "again", None, None, None),
        ("fails", "again", "destination.text", "destinations.chat.text: {event.body.state} has no value"),
        ("added", "again", None, None, None),
    ]


def test_a_route_moves_to_another_source() -> None:
    new = CONFIG.replace('[routes.orders-to-chat]\nsource = "shop"', '[routes.orders-to-chat]\nsource = "other"')
    assert briefly(compared(new, order(state="x"))[0]) == [("removed", CHAT, None, None, None)]


def test_a_source_that_is_gone_rejects_all_its_requests() -> None:
    new = changed(("sources.shop]", "sources.store]"), ('source = "shop"', 'source = "store"'))
    assert briefly(compared(new, order())[0]) == [("rejected", None, None, "there is no such source")]


def test_a_request_that_cant_be_read_any_more_is_rejected_and_the_others_are_compared() -> None:
    new = changed((READS, 'entity_id = "body.no"'), ('type = "body.kind"', 'type = "body.sort"'))
    found, _ = compared(new, order(state="x"), order(sort="paid", no="9", second=1, state="x"))
    assert found[-1].kind == "rejected"
    assert found[-1].why == "type is missing"
    assert ("event", None, "entity_id", "7", "9") in briefly(found[:-1])


LIMITS = pytest.mark.parametrize(
    ("limit", "why"),
    [
        ("max_body = 10", "the body is larger than max_body, 10 bytes"),
        ('max_body = 4000\nmax_age = "10m"', "the event is older than max_age, 600 s"),
    ],
)


@LIMITS
def test_a_limit_of_the_source_rejects(limit: str, why: str) -> None:
    found, _ = compared(changed(("max_body = 4000", limit)), order(state="x", pad="1"))
    assert briefly(found) == [("rejected", None, None, why)]


@LIMITS
def test_what_todays_own_limit_would_reject_is_newly_accepted_routed_and_tried(limit: str, why: str) -> None:
    today = changed(("max_body = 4000", limit))
    found, comparison = compared(CONFIG, order(), old=today, arrived_under=CONFIG)
    assert briefly(found) == [
        ("accepted", None, None, why),
        ("added", CHAT, None, None, None),
        ("fails", CHAT, "destination.text", "destinations.chat.text: {event.body.state} has no value"),
        ("added", ERP, None, None, None),
    ]
    (event,) = events_of(parse_config(CONFIG), [order()])
    assert comparison.needs_payload(arrived(1, event)), "the new route's text looks into the body"
    assert comparison.counts.stored_otherwise.count == 1, "today would not have stored it"


@LIMITS
def test_what_both_limits_reject_was_stored_under_a_third_configuration(limit: str, why: str) -> None:
    today = changed(("max_body = 4000", limit))
    found, comparison = compared(today, order(), old=today, arrived_under=CONFIG)
    assert (found, comparison.counts.stored_otherwise.count) == ([], 1), why


def test_another_entity_is_another_lane_and_lanes_split_and_merge() -> None:
    new = changed((READS, 'entity_id = "body.customer"'), ('number = "event.entity_id"', 'number = "event.event_type"'))
    bodies = [
        order(number, "sent", n, customer=c) for n, (number, c) in enumerate([(1, "a"), (1, "b"), (2, "a"), (3, "c")])
    ]
    found, _ = compared(new, *bodies)
    lanes = [(each.seq, each.before, each.after) for each in found if each.kind == "lane"]
    assert lanes[-1] == (1, "ORDER|1", "ORDER|a")
    assert [(each.kind, each.route, each.after, each.seq) for each in found[-2:]] == [
        ("split", ERP, 1, 2),
        ("merge", ERP, 1, 3),
    ]
    assert {each.name for each in found if each.kind == "event"} == {"entity_id"}, (
        "the time is in the key, the id is not"
    )


@pytest.mark.parametrize(
    ("lane", "kinds"), [("route", {"lane", "merge"}), ("event", {"lane", "split"}), ("entity", set())]
)
def test_another_unit_of_order(lane: str, kinds: set[str]) -> None:
    new = CONFIG.replace('destination = "chat"\n', f'destination = "chat"\nlane = "{lane}"\n')
    found, _ = compared(new, *(order(n % 2, second=n, state="x") for n in range(4)))
    assert {each.kind for each in found} == kinds
    assert {each.route for each in found} <= {CHAT}


def test_events_that_become_one_are_duplicates() -> None:
    new = changed(("max_body = 4000", 'dedup = ["kind"]'))
    found, _ = compared(new, order(1), order(2, second=1), order(3, "sent", 2))
    assert [(each.kind, each.seq) for each in found if each.kind == "duplicate"] == [("duplicate", 1)]


def test_events_that_are_one_already_are_no_duplicates() -> None:
    old = changed(("max_body = 4000", 'dedup = ["kind"]'))
    new = old.replace('dedup = ["kind"]', 'dedup = ["kind", "kind"]')
    found, _ = compared(new, order(1), order(2, second=1), old=old, arrived_under=CONFIG)
    assert {each.name for each in found} == {"dedup_key"}
    assert {each.kind for each in found} == {"event"}


def test_an_expression_that_may_read_everything_is_not_evaluated_without_the_entity() -> None:
    old = changed(('number = "event.entity_id"', 'number = "@.event.entity_id"'))
    new = changed(('number = "event.entity_id"', 'number = "length(@)"'))
    assert briefly(compared(new, order(kind="sent"), old=old)[0]) == [
        ("setting", ERP, "sync.map.number", "@.event.entity_id", "length(@)")
    ]


def test_parts_of_a_request_differ_by_the_event_alone() -> None:
    new = changed(
        ("is {event.body.state}", "was {event.body.state}"),
        (
            'path = "/orders/{event.entity_id}" }\ncreate',
            'path = "/order", params = { id = "{event.entity_id}" } }\ncreate',
        ),
        ('number = "event.entity_id"', 'number = "event.body.state"'),
        ('total = "entity.total"', 'total = "entity.sum"'),
    )
    assert sorted(briefly(compared(new, order(state="new"))[0]), key=str) == [
        ("setting", ERP, "sync.map.total", "entity.total", "entity.sum"),
        ("value", CHAT, "destination.text", "7 is new", "7 was new"),
        ("value", ERP, "sync.fetch", "GET /orders/7", "GET /order?id=7"),
        ("value", ERP, "sync.map.number", "7", "new"),
    ]


def test_one_event_that_fails_is_a_finding_and_one_that_fails_in_both_is_none() -> None:
    new = changed(("{event.body.state}", "{event.body.status}"))
    found, comparison = compared(
        new, order(1, state="a", status="a"), order(2, second=1, state="a"), order(3, second=2)
    )
    assert [(each.kind, each.seq, each.before) for each in found] == [("fails", 2, "2 is a")]
    assert (comparison.counts.fails_in_both.count, comparison.counts.fails_in_both.seq) == (1, 3)
    back, _ = compared(CONFIG, order(2, state="a"), old=new)
    assert briefly(back) == [
        ("works", CHAT, "destination.text", "destinations.chat.text: {event.body.status} has no value")
    ]


def test_a_field_that_turns_from_the_event_to_the_entity_is_a_setting() -> None:
    found, _ = compared(changed(('number = "event.entity_id"', 'number = "entity.number"')), order(kind="sent"))
    assert briefly(found) == [("setting", ERP, "sync.map.number", "event.entity_id", "entity.number")]


def test_another_kind_of_destination_is_told_once_and_tried() -> None:
    new = changed(
        (
            'kind = "slack"\nurl = "env:CHAT_URL"\ntext = "{event.entity_id} is {event.body.state}"',
            'kind = "forward"\nurl = "https://chat.example.com/hook"',
        )
    )
    names = {each[2] for each in briefly(compared(new, order(state="x"))[0])}
    assert names == {"destination.kind", "destination.url"}


def test_secrets_and_headers_are_never_shown() -> None:
    old = changed(
        ('url = "env:CHAT_URL"', 'url = "https://chat.example.com/hidden-1"\nheaders = { X-Key = "hidden-1" }')
    )
    new = changed(
        ('url = "env:CHAT_URL"', 'url = "https://chat.example.com/hidden-2"\nheaders = { X-Key = "hidden-2" }'),
        ("https://shop.example.com", "https://user:hidden@shop.example.com/v2?key=hidden"),
        ('{event.entity_id}" }\ncreate', '{event.entity_id}", headers = { X-Key = "hidden-3" } }\ncreate'),
    )
    found, _ = compared(new, order(state="x"), old=old)
    assert briefly(found) == [
        ("setting", CHAT, "destination.headers.X-Key", "…", "…"),
        ("setting", CHAT, "destination.url", "https://chat.example.com/…", "https://chat.example.com/…"),
        ("setting", ERP, "api.base_url", "https://shop.example.com", "https://shop.example.com/v2"),
        ("value", ERP, "sync.fetch.headers.X-Key", None, "…"),
    ]
    assert "hidden" not in str(other_settings(parse_config(old), parse_config(new)))


def test_other_settings_are_named_without_their_values() -> None:
    new = changed(("[destinations.chat]", "[destinations.chat]\ntimeout = '3s'")) + '[logs]\nformat = "json"\n'
    assert other_settings(parse_config(CONFIG), parse_config(new)) == ["logs.format", "destinations.chat.timeout"]


def test_without_its_payload_an_event_is_compared_by_its_columns() -> None:
    found, comparison = compared(changed(('["paid"]', '["sent"]')), order(), without_payload=True)
    assert [each.kind for each in found] == ["removed"]
    assert comparison.counts.without_payload.count == 0, "nothing looks into it"
    for change in ((READS, 'entity_id = "body.number"'), ("{event.body.state}", "{event.body.status}")):
        found, comparison = compared(changed(change), order(number="9"), without_payload=True)
        assert found == []
        assert comparison.counts.without_payload.count == 1


def test_without_its_payload_the_other_parts_are_compared_and_the_event_is_counted_once() -> None:
    new = changed(
        ("{event.body.state}", "{event.body.status}"),
        ('path = "/orders/{event.entity_id}" }\ncreate', 'path = "/order/{event.entity_id}" }\ncreate'),
        ('number = "event.entity_id"', 'number = "event.body.number"'),
    )
    found, comparison = compared(new, order(), without_payload=True)
    assert briefly(found) == [("value", ERP, "sync.fetch", "GET /orders/7", "GET /order/7")]
    assert comparison.counts.without_payload.count == 1


def test_an_event_that_was_stored_under_a_third_configuration_is_counted() -> None:
    _, comparison = compared(CONFIG, order(kind="sent"), arrived_under=changed(('["paid"]', '["sent"]')))
    assert comparison.counts.stored_otherwise.count == 1


def test_a_body_that_is_not_what_it_was_is_compared_as_stored() -> None:
    comparison = Comparison(parse_config(CONFIG), parse_config(changed((READS, 'entity_id = "body.number"'))))
    (event,) = events_of(parse_config(CONFIG), [order(kind="sent")])
    for seq, body in enumerate((b"\xff{", b"[" * 100_000, b"", b'{"kind": 1}', json.dumps(order()).encode("utf-16"))):
        with SeenKeys() as seen:
            assert [*comparison.compare(arrived(seq, event), Payload({}, body), seen)] == []
    assert comparison.counts.not_read_again.count == 5


def test_an_event_of_a_sweep_is_not_read_again() -> None:
    comparison = Comparison(parse_config(CONFIG), parse_config(changed((READS, 'entity_id = "body.kind"'))))
    (event,) = events_of(parse_config(CONFIG), [order(kind="sent")])
    key = swept_key("ORDER", "7", to_nanoseconds(event.occurred_at))
    swept = msgspec.structs.replace(arrived(1, event), dedup_key=key)
    with SeenKeys() as seen:
        assert [*comparison.compare(swept, Payload({}, event.body), seen)] == []
        assert [*comparison.compare(arrived(1, event), Payload({}, event.body), seen)], "another one is"


def test_a_mistake_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"routes\.orders-to-erp\.sync\.map\.total: 'entity\.\[' is not a JMESPath"):
        compared(changed(('total = "entity.total"', 'total = "entity.["')), order())


def test_groups_are_bounded_and_long_values_cut() -> None:
    groups = Groups()
    for seq in range(3000, 0, -1):
        groups.add(ConfigDifference("fails", seq, "shop", CHAT, "text", before="x" * 100_000, why=f"reason {seq}"))
    found = [*groups.in_order()]
    assert len(found) == 201
    assert (found[0].name, found[0].count, found[0].first_seq, found[0].last_seq) == (OTHERS, 2800, 1, 2800)
    assert {len(str(each.before)) for each in found[1:]} == {501}
