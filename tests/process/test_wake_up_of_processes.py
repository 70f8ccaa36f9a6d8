"""Wake-ups between real processes: relays that look for work once an hour, and are woken by a receiver's workers."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from tests.helpers.daemon import kinds
from tests.helpers.databases import is_postgres
from tests.helpers.processes import site
from tests.helpers.receiver import posted
from tests.helpers.tables import facts
from tests.helpers.traffic import serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body, config_text, moment

HARDLY_EVER_LOOKING = (
    "from relay.daemon import loop; loop.BUSY_POLL_SECONDS = loop.IDLE_POLL_SECONDS = 3600.0;"
    " from relay.cli.main import main; main()"
)


def test_every_worker_of_a_receiver_wakes_idle_relays(database_url: str, engine: Engine, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "arrivals.jsonl") as downstream,
        site(tmp_path, config_text(database_url, downstream.url)) as place,
    ):
        relays = [place.start("relay", "-c", HARDLY_EVER_LOOKING, "run") for _ in range(2)]
        _, port = place.receiver(workers=2 if is_postgres(database_url) else 1)
        for relay in relays:
            relay.writes("started node=")
        for n in range(8):
            assert posted(port, PATH, body("u1", moment(n)), dict(HEADERS)) == 200
            until(lambda: kinds(engine).count("delivered") == n + 1, "it is delivered")
        assert [relay.stop() for relay in relays] == [0, 0]
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
