"""A sync route without a fetch: no body follows a newer one of its lane unless a person decides so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.config.model import Ordering
from relay.delivery.policy import policies
from relay.destinations import build
from relay.operations.asks import Selection
from tests.destinations.calling import FIND, FOUND, OWN_BODY, UPDATE, World
from tests.helpers.delivering import ROUTE
from tests.helpers.relaying import Steps, carry_out
from tests.helpers.scripted import Act, ScriptedServer, answer, serving
from tests.helpers.storing import an_event
from tests.store.conftest import differences, mend


class Bodies(Steps):
    """The relay's steps with the real deliverer of the route, whose destination is scripted."""

    def __init__(self, engine: Engine, server: ScriptedServer, sync: str, ordering: Ordering | None) -> None:
        config = World(server).config(sync)
        route = msgspec.structs.replace(config.routes[ROUTE], ordering=ordering)
        config = msgspec.structs.replace(config, routes={ROUTE: route})
        super().__init__(engine, policies(config))
        self.config, self.server = config, server
        self.deliverer = build(config)[ROUTE]  # type: ignore[assignment]  # scripted in other tests
        self._number = 0
        self.script(answer())

    def script(self, *acts: Act) -> None:
        """Set the responses to updates; the last one repeats."""
        self.server.routes |= {FIND: [FOUND], UPDATE: list(acts)}

    def tell(self, *bodies: tuple[int, str]) -> None:
        """Receive bodies, each with the second of its time and a name, and do everything that is due after each."""
        for second, name in bodies:
            self._number += 1
            self.receive(
                an_event(self._number, second=second, routes=[ROUTE], body=json.dumps({"name": name}).encode())
            )
            self.until_nothing_is_due()

    def replay(self, chosen: Selection) -> int:
        """Replay as an operator, and do everything that is due; return the number of replayed ones."""
        number = carry_out(self.database, self.config, "replay", chosen, why="asked for")
        self.until_nothing_is_due()
        return number

    @property
    def sent(self) -> list[str]:
        """The names in all updates, in order."""
        return [json.loads(seen.body)["name"] for seen in self.server.seen if seen.method == "PATCH"]

    def deaths(self) -> list[tuple[int, str, object]]:
        """Return seq, cause and calls of all deaths."""
        found = self.rows("SELECT seq, detail FROM delivery_log WHERE kind = 'dead' ORDER BY id")
        return [(row["seq"], row["detail"]["cause"], row["detail"].get("calls", [])) for row in found]


@pytest.fixture
def sync() -> str:
    return OWN_BODY


@pytest.fixture
def ordering() -> Ordering | None:
    return None


@pytest.fixture
def bodies(engine: Engine, sync: str, ordering: Ordering | None) -> Iterator[Bodies]:
    with serving(routes={}) as server:
        made = Bodies(engine, server, sync, ordering)
        yield made
        made.facts_agree()
        assert differences(made.database, made.config) == []


OVERTAKEN = Selection(cause="overtaken")


def test_an_older_body_is_dead_without_a_call_until_a_person_decides(bodies: Bodies) -> None:
    bodies.tell((0, "first"), (20, "newest"), (10, "older"), (20, "same second"))
    assert bodies.sent == ["first", "newest", "same second"]
    assert bodies.deaths() == [(3, "overtaken", [])]
    assert bodies.replay(OVERTAKEN) == 0
    assert bodies.replay(Selection(cause="overtaken", force=True)) == 1
    assert bodies.sent[3:] == ["older"]
    assert bodies.states() == []


@pytest.mark.parametrize("sync", [f"skip_unchanged = true\n{OWN_BODY}"])
def test_an_older_body_does_not_follow_a_newer_one_that_was_unchanged(bodies: Bodies) -> None:
    bodies.tell((0, "same"), (20, "same"))
    bodies.do("DELETE FROM lane")
    assert [found.finding for found in mend(bodies.database, bodies.config)] == ["last_delivered"] * 2
    bodies.tell((10, "older"))
    assert (bodies.sent, bodies.deaths()) == (["same"], [(3, "overtaken", [])])
    assert carry_out(bodies.database, bodies.config, "cancel", OVERTAKEN, why="older") == 1


def test_bodies_that_arrive_during_retries_keep_their_order(bodies: Bodies) -> None:
    bodies.script(answer(503), answer(503), answer())
    bodies.tell((10, "tried"), (20, "newer"), (0, "older"))
    for _ in range(2):
        bodies.advance(3600)
        bodies.until_nothing_is_due()
    assert bodies.sent == ["tried"] * 3 + ["newer"]
    assert bodies.deaths() == [(3, "overtaken", [])]


def test_a_replay_of_all_keeps_their_order(bodies: Bodies) -> None:
    bodies.tell((0, "a"), (10, "b"), (20, "c"))
    assert bodies.replay(Selection(seq=1)) == 0
    assert bodies.replay(Selection(route=ROUTE, backfill=True)) == 3
    assert bodies.sent == ["a", "b", "c"] * 2


@pytest.mark.parametrize("ordering", ["latest"])
def test_on_latest_an_older_body_follows_within_the_clock_skew_alone(bodies: Bodies) -> None:
    bodies.tell((0, "first"), (20, "newest"), (18, "perhaps newer"), (3, "older"))
    assert bodies.sent == ["first", "newest", "perhaps newer"]
    assert bodies.kinds()[-1:] == [(4, "superseded")]
