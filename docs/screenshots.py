"""Makes the pictures of the operator's page in `docs/web/`: `python -m docs.screenshots`.

It fills a database with a night of trouble, serves the page, and opens it in Chromium. No test runs this, as the times on the
pictures differ from run to run.
"""  # noqa: INP001  # a script beside pages

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db import migrate
from relay.store import nodes
from relay.store.database import Database
from tests.helpers.browser import DESK, PHONE, Browser, Theme, browsing
from tests.helpers.page import OPERATOR, on_database, serving
from tests.helpers.worlds import NIGHT, the_night

FOLDER = Path(__file__).resolve().parent / "web"
MOST_BYTES = 150_000


class Shot(NamedTuple):
    """A picture of a page."""

    name: str
    path: str
    width: int
    height: int
    theme: Theme
    link: str | None = None
    """Selector of a link to follow first."""


SHOTS = (
    Shot("overview", "/?live=0", DESK, 900, "light"),
    Shot("overview-phone", "/?live=0", PHONE, 780, "dark"),
    Shot("deliveries", "/deliveries?state=dead&live=0", DESK, 600, "dark"),
    Shot("dead", "/dead?live=0", DESK, 450, "light"),
    Shot("plan", "/dead?live=0", DESK, 760, "light", 'tbody a[href^="/acts/replay"]'),
    Shot("event", "/dead?live=0", DESK, 780, "dark", 'tbody a[href^="/events/"]'),
)


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        url = f"sqlite:///{folder}/inbox.db"
        engine = engines.connect(url, application="screenshots")
        migrate.upgrade(engine)
        the_night(engine, SystemClock().now())
        with serving(on_database(NIGHT, url), SystemClock()) as page:
            browser.site = page.url
            browser.act_as(OPERATOR)
            for shot in SHOTS:
                nodes.heartbeat(Database(engine), "relay-1")
                take(browser, shot)
        engine.dispose()


def take(browser: Browser, shot: Shot) -> None:
    """Take one picture.

    Raises:
        ValueError: it is too large for a repository.
    """
    browser.look(width=shot.width, height=shot.height, theme=shot.theme)
    browser.open(shot.path)
    if shot.link is not None:
        browser.find(shot.link).click()
        browser.wait(lambda: browser.location() != shot.path, "the link was followed")
    path = FOLDER / f"{shot.name}.png"
    browser.picture(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes; choose a smaller part")


if __name__ == "__main__":
    main()
