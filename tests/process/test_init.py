"""`inbox init`: from an empty folder to a delivered webhook, and what it never overwrites."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import Site, site
from tests.helpers.scripted import answer, serving


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, "") as made:
        (tmp_path / "inbox.toml").unlink()
        yield made


def written(place: Site) -> str:
    return (place.folder / "inbox.toml").read_text(encoding="utf-8")


def test_the_steps_that_it_prints_lead_to_a_delivered_webhook(empty: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(empty.folder)
    with serving(answer(200)) as server:
        ended = empty.invoke("inbox", "init", "--source", "github")
        assert ended.status == 0, ended.stderr
        own = f'url = "{server.url}/hook"\nallow_private = true\nallow_http = true'
        text = written(empty).replace('url = "https://service.example.com"', own)
        (empty.folder / "inbox.toml").write_text(text, encoding="utf-8")
        exports = [line.split() for line in ended.stdout.splitlines() if line.strip().startswith("export ")]
        names = [name.partition("=")[0] for _, name, *_ in exports]
        assert names == ["GITHUB_SECRET", "SERVICE_SIGNING_SECRET"]
        for name in names:
            monkeypatch.setenv(name, "a-secret")
        assert empty.invoke("inbox", "migrate").status == 0
        checked = empty.invoke("inbox", "check", "--online")
        assert checked.status == 0, checked.stdout
        receiver, port = empty.receiver(1)
        sent = empty.invoke("inbox", "send", "github", "--url", f"http://127.0.0.1:{port}")
        assert sent.status == 0, sent.stderr
        assert empty.relay("--drain").ends() == 0
        receiver.send(signal.SIGTERM)
        assert receiver.ends() == 0
        assert server.asked[-1] == "POST /hook"


def test_it_replaces_nothing_unless_it_is_told_to(empty: Site) -> None:
    options = ("init", "--source", "stripe")
    assert empty.invoke("inbox", *options).status == 0
    before = written(empty)
    ended = empty.invoke("inbox", "init", "--source", "okta")
    assert ended.status == 2
    assert written(empty) == before
    assert empty.invoke("inbox", "init", "--source", "okta", "--force").status == 0
    assert "[sources.okta]" in written(empty)


def test_a_link_that_leads_nowhere_is_not_followed(empty: Site) -> None:
    (empty.folder / "inbox.toml").symlink_to(empty.folder / "elsewhere.toml")
    ended = empty.invoke("inbox", "init", "--source", "okta")
    assert ended.status == 2
    assert not (empty.folder / "elsewhere.toml").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give --source, one of adyen, auth0, cloudevents, "),
        (("--source", "githbu"), "there is no source 'githbu'; did you mean 'github'?"),
        (("--source", "github", "--database", "mysql"), "there is no database 'mysql'; valid here: postgresql, sqlite"),
    ],
)
def test_a_wrong_choice_writes_nothing_and_says_what_is_right(empty: Site, options: tuple[str, ...], told: str) -> None:
    ended = empty.invoke("inbox", "init", *options)
    assert ended.status == 2
    assert told in ended.stderr.replace("\n", " ")
    assert list(empty.folder.glob("*.toml")) == []
