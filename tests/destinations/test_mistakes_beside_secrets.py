"""A mistake in the file is told without the secret that stands beside it, or is part of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inbox.db import engine
from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from inbox.sources import preset_of
from inbox.sources.credentials import verifier_of
from relay import destinations
from relay.daemon.generation import alert_client
from tests.helpers.planted import Planted

SECRET = Planted()
HIDDEN = SECRET.plain("mistaken")

SOURCE = '[sources.s]\npreset = "trivore"\nauth = { kind = "none" }\n'
HOOK = '[destinations.d]\nkind = "forward"\nurl = "https://crm.example"\n'
ROUTE = '[routes.r]\nsource = "s"\ndestination = "d"\n'


def start(text: str) -> None:
    """All that reads the configuration before the first request or call."""
    config = parse_config(text)
    for source in config.sources.values():
        verifier_of(source, preset_of(source))
    destinations.build(config)
    alert_client(config)
    engine.parse_url(config.database.url)


def mistake_in(read: Callable[[str], object], text: str) -> str:
    """The mistake, which shows no secret."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert SECRET.leaks({"the error": str(caught.value)}) == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (f'pasword = "{HIDDEN}"', "pasword"),
        (f'auth = {{ token = "{HIDDEN}" }}', "kind"),
        (f'auth = {{ kind = "bearer", token = ["{HIDDEN}"] }}', "token"),
        (f'auth = {{ kind = "bearer", token = {{ valeu = "{HIDDEN}" }} }}', "token"),
        (f'auth = {{ kind = "bearer", token = {{ value = "{HIDDEN}", until = 1 }} }}', "until"),
        (f'auth = {{ kind = "bearer", token = {{ value = "{HIDDEN}", not_after = 2027-01-01 }} }}', "2027-01-01"),
        (f'auth = {{ kind = "header", name = "a b", value = "{HIDDEN}" }}', "a b"),
        (f'headers = {{ "a b" = "{HIDDEN}" }}', "a b"),
        (f'signing_secret = "whsec_{HIDDEN}!"', "signing_secret"),
        (f'proxy = "socks5://me:{HIDDEN}@proxy"', "proxy"),
        (f'proxy = "http://me:{HIDDEN}@[proxy"', "proxy"),
        (f'proxy = "http://me:{HIDDEN}@proxy:port"', "proxy"),
        (f'proxy = "http://me:{HIDDEN}\u2100@proxy"', "proxy"),
        (f'ca_file = "/nowhere.pem"\nauth = {{ kind = "bearer", token = "{HIDDEN}" }}', "/nowhere.pem"),
        (f'auth = {{ kind = "bearer", token = "{HIDDEN}', "TOML"),
    ],
)
def test_a_mistake_in_a_destination_does_not_show_its_secret(mistake: str, told: str) -> None:
    assert told in mistake_in(start, SOURCE + HOOK + mistake + "\n" + ROUTE)


@pytest.mark.parametrize("place", ["destinations.d", "alerts"])
def test_a_url_that_can_not_be_used_is_not_shown(place: str) -> None:
    good = HOOK if place == "alerts" else HOOK.replace("https://crm.example", "URL")
    text = good + ('[alerts]\nurl = "URL"\n' if place == "alerts" else "")
    for url in (
        "http://crm.example/",
        "ftp://crm.example/",
        "crm.example/",
        "https://crm.example:port/",
        "https://[crm/",
    ):
        assert place in mistake_in(start, SOURCE + text.replace("URL", url + HIDDEN) + ROUTE)
    assert place in mistake_in(start, SOURCE + text.replace("URL", f"https://me:{HIDDEN}@crm.example/") + ROUTE)


@pytest.mark.parametrize("auth", ["secrets = {}", "secrets = [[{}]]", "secrets = [{{ valeu = {} }}]", "secret = [{}]"])
def test_a_mistake_in_a_source_does_not_show_its_secret(auth: str) -> None:
    mistake = auth.format(f'"{HIDDEN}"')
    assert "secret" in mistake_in(start, f'[sources.s]\npreset = "trivore"\nauth = {{ kind = "bearer", {mistake} }}\n')


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://h/x?password={HIDDEN}",
        f"me:{HIDDEN}@host",
        f"sqlite:///:memory:?password={HIDDEN}",
        f"sqlite://me:{HIDDEN}@h",
        f"postgresql://me:{HIDDEN}@h:port/x",
        f"postgresql:/me:{HIDDEN}@h/x",
        f"{HIDDEN}",
        f"postgresql://me:p@{HIDDEN}@h/x",
        f"postgresql://me:p@{HIDDEN}/x@h/x",
        f"postgresql://h/x?password={HIDDEN}&pooler=session",
    ],
)
def test_a_database_url_that_can_not_be_used_is_not_shown(url: str) -> None:
    assert "[database] url: " in mistake_in(engine.parse_url, url)


def test_a_url_with_a_password_anywhere_is_read_and_shows_it_nowhere() -> None:
    for url, user, password, database in (
        (f"postgresql://me@h/x?password={HIDDEN}&sslmode=require", "me", HIDDEN, "x"),
        (f"postgresql://me@server:{HIDDEN}@h/x", "me@server", HIDDEN, "x"),
        (f"postgresql://me:{HIDDEN}?%40@h/x?options=-c%20a%3Db@c", "me", f"{HIDDEN}?@", "x"),
        (f"postgresql://me:/{HIDDEN}%2F@h/x%40y", "me", f"/{HIDDEN}/", "x@y"),
    ):
        parsed = engine.parse_url(url)
        assert (parsed.username, parsed.password, parsed.host, parsed.database) == (user, password, "h", database)
        made = engine.connect(url, application="tests")
        assert SECRET.leaks({"an engine": repr(made), "its url": str(made.url)}) == []
    parsed = engine.parse_url(f"postgresql://me:{HIDDEN}@h/x?sslkey=k.pem&sslpassword={HIDDEN}")
    assert engine.format_url(parsed) == "postgresql+psycopg://me:***@h/x?sslkey=k.pem"
