from __future__ import annotations

import pytest

from inbox.loader.load import parse_config
from tests.helpers.mistakes import mistake

FILE = """\
[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
[apis.identity]
base_url = "https://id.example.com"
[destinations.crm]
kind = "sync"
base_url = "https://crm.example.com"
[destinations.audit]
kind = "forward"
url = "https://audit.example.com/hook"
[routes.all]
source = "trivore"
destination = "audit"
[routes.users]
source = "trivore"
destination = "crm"
[routes.users.sync]
fetch = { api = "identity", path = "/user/{event.entity_id}" }
find = { path = "/contacts", verify = false }
create = { path = "/contacts" }
update = { path = "/contacts/{target.id}" }
delete = { path = "/contacts/{ target.id }" }
map = { email = "entity.email" }
"""


def changed(*changes: tuple[str, str]) -> str:
    text = FILE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


NO_CREATE = ('create = { path = "/contacts" }\n', "")
NO_DELETE = ('delete = { path = "/contacts/{ target.id }" }\n', "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ('source = "trivore"\ndestination = "audit"', 'source = "trivor"\ndestination = "audit"'),
            "inbox.toml:13: [routes.all] source: there is no source 'trivor'; did you mean 'trivore'?",
        ),
        (
            ('destination = "audit"', 'destination = "auditt"'),
            "inbox.toml:14: [routes.all] destination: there is no destination 'auditt'; did you mean 'audit'?",
        ),
        (
            ('destination = "audit"', 'destination = "zzz"'),
            "inbox.toml:14: [routes.all] destination: there is no destination 'zzz'; valid here: audit, crm",
        ),
        (
            ('api = "identity"', 'api = "idntity"'),
            "inbox.toml:19: [routes.users.sync] fetch.api: there is no api 'idntity'; did you mean 'identity'?",
        ),
        (
            ('[apis.identity]\nbase_url = "https://id.example.com"\n', ""),
            "inbox.toml:17: [routes.users.sync] fetch.api: there is no api 'identity'; none is configured",
        ),
        (
            ('destination = "audit"', 'destination = "crm"'),
            "inbox.toml:12: [routes.all]: 'crm' is a sync destination; add [routes.all.sync] with fetch and map",
        ),
        (
            ('destination = "crm"', 'destination = "audit"'),
            "inbox.toml:18: [routes.users.sync]: 'audit' is not a sync destination; give it kind = \"sync\", or remove",
        ),
        (NO_CREATE, 'inbox.toml:18: [routes.users.sync] create: is missing, and missing = "create" (the default)'),
        (NO_DELETE, 'inbox.toml:18: [routes.users.sync] delete: is missing, and gone = "delete" (the default)'),
    ],
)
def test_tables_that_do_not_fit_together_are_told_with_the_nearest_name(change: tuple[str, str], expected: str) -> None:
    assert expected in mistake(changed(change))


UPDATE = 'update = { path = "/contacts/{target.id}" }\n'


SWEEP = '[[sources.trivore.sweeps]]\napi = "identity"\npath = "/user"\nentity_type = "USER"\n'

ONLY_LOGINS_AND_UPDATES = """\
[routes.users.when]
event_type = ["UPDATE"]
[routes.all.when]
event_type = ["LOGIN"]
"""
ONLY_CREATIONS = """\
[routes.users.when]
action = ["create"]
[routes.all.when]
entity_type = ["GROUP"]
"""


@pytest.mark.parametrize(
    ("sweeps", "expected"),
    [
        (SWEEP.replace('"identity"', '"idntity"'), "api: there is no api 'idntity'; did you mean 'identity'?"),
        (SWEEP + SWEEP, "entity_type: 'USER' has a sweep already; one table for each type"),
        (
            SWEEP + ONLY_LOGINS_AND_UPDATES,
            "event_type: 'sweep' with the action 'update' is taken by no route of 'USER'",
        ),
        (SWEEP + ONLY_CREATIONS, "'sweep' with the action 'update' is taken by no route of 'USER'"),
        (f'{SWEEP}every = "0s"', "every: must be longer than nothing; leave it out for `relay sweep` by hand"),
    ],
)
def test_sweeps_that_can_not_be_run_are_told(sweeps: str, expected: str) -> None:
    assert expected in mistake(FILE + sweeps)


@pytest.mark.parametrize(
    "more",
    [
        ONLY_LOGINS_AND_UPDATES.replace('"LOGIN"', '"LOGIN", "sweep"'),
        '[routes.users.when]\nentity_type = ["GROUP"]\n[routes.all.when]\nentity_type = ["GROUP"]',
    ],
    ids=["one takes them", "none is for its type"],
)
def test_a_sweep_whose_events_are_taken_or_whose_type_nobody_wants_is_right(more: str) -> None:
    assert parse_config(FILE + SWEEP + more).sources["trivore"].sweeps


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ('"lnk"', "'lnk' is not one of link, none, scim; did you mean 'link'?"),
        ("5", "expected a table or one of link, none, scim, got a number"),
        ("{}", "pages.by: is missing"),
        ('{ by = "offset" }', "pages.by: 'offset' is not one of cursor, link, page, start, url"),
        ('{ by = "cursor" }', "pages.next: is missing: the JMESPath that finds the value for {next} in a page"),
        ('{ by = "url" }', "pages.next: is missing: the JMESPath that finds the URL of the next page in a page"),
        (
            '{ by = "page", next = "x" }',
            'pages.next: means nothing with by = "page"; remove it, or set by = "cursor" or "url"',
        ),
        (
            '{ by = "link", total = "x" }',
            'pages.total: means nothing with by = "link"; remove it, or set by = "page" or "start"',
        ),
        ('{ by = "url", next = "x", more = "y" }', 'pages.more: means nothing with by = "url"'),
        ('{ by = "link", first = 0 }', 'pages.first: means nothing with by = "link"'),
        ('{ by = "page", most = 1 }', "pages.most: expected a whole number from 2 to 100000, got 1"),
    ],
)
def test_a_mistake_in_pages_is_told(pages: str, expected: str) -> None:
    assert expected in mistake(f"{FILE}{SWEEP}pages = {pages}\n")


@pytest.mark.parametrize("posts", ['method = "POST"', 'graphql = "{ x }"'])
@pytest.mark.parametrize("pages", ['"link"', '{ by = "url", next = "next" }'])
def test_links_are_followed_by_get_alone(posts: str, pages: str) -> None:
    expected = 'follows links by GET alone; page by = "cursor"'
    assert expected in mistake(f"{FILE}{SWEEP}{posts}\npages = {pages}\n")
