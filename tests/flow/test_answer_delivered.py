"""A webhook whose response is the outcome of its delivery: delivered, given up, or not known yet."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.config.values import Duration
from inbox.errors import StillOpen
from inbox.http.limits import memory_for
from inbox.receiver import app, wait
from inbox.receiver.wait import POLL_SECONDS, OutcomeWaiter
from inbox.receiver.webhook import LONGEST_WAIT_SECONDS, wait_timeout
from tests.helpers.databases import ON_BOTH
from tests.helpers.receiver import PROBLEM, Receiver, a_link, ask, receiving, serve_receiver, status_of, webhook
from tests.helpers.relaying import HOPELESS, Scripted, Steps, fill
from tests.helpers.tables import count
from tests.helpers.waiting import LONGEST_SECONDS, until, until_async
from tests.helpers.webhooks import a_config, body, moment


@pytest.fixture
def config(database_url: str) -> Config:
    """The source's webhooks are answered by their outcome, within 300 ms."""
    plain = a_config(database_url)
    waits = msgspec.structs.replace(plain.sources["trivore"], answer="delivered", answer_timeout=Duration(0.3))
    return msgspec.structs.replace(plain, sources={**plain.sources, "trivore": waits})


@pytest.fixture
async def patient(config: Config) -> AsyncIterator[Receiver]:
    """The same, with a minute of patience."""
    source = msgspec.structs.replace(config.sources["trivore"], answer_timeout=Duration(60))
    async with receiving(msgspec.structs.replace(config, sources={**config.sources, "trivore": source})) as made:
        yield made


async def wait_until_stored(engine: Engine, number: int = 1) -> None:
    await until_async(lambda: count(engine, "inbox") == number, "it is stored")


@ON_BOTH
async def test_it_is_answered_when_it_is_delivered(patient: Receiver, steps: Steps, engine: Engine) -> None:
    answer = asyncio.create_task(patient.post())
    await wait_until_stored(engine)
    await asyncio.to_thread(steps.round)
    told = await answer
    assert (told.status_code, told.json) == (200, {"status": "delivered", "seq": 1})


@ON_BOTH
async def test_an_event_that_was_given_up_is_502_and_says_why(patient: Receiver, steps: Steps, engine: Engine) -> None:
    steps.deliverer = Scripted([HOPELESS])
    answer = asyncio.create_task(patient.post())
    await wait_until_stored(engine)
    await asyncio.to_thread(steps.round)
    told = await answer
    assert (told.status_code, told.headers["content-type"]) == (502, PROBLEM)
    assert told.json["title"] == "Stored, not delivered"
    assert told.json["detail"] == "route everything: email: no value"


async def test_a_delivery_that_blocks_its_lane_was_given_up_too(patient: Receiver, engine: Engine) -> None:
    answer = asyncio.create_task(patient.post())
    await wait_until_stored(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'blocked', due_at = NULL"))
    assert (await answer).status_code == 502


async def test_a_duplicate_waits_for_the_outcome_of_the_same_event(
    receiver: Receiver, steps: Steps, engine: Engine
) -> None:
    told = await receiver.post()
    assert (told.status_code, told.headers["retry-after"]) == (503, "2")
    assert told.json["title"] == "Stored, not delivered yet"
    again = asyncio.create_task(receiver.post(headers={"Prefer": "wait=60"}))
    await until_async(lambda: count(engine, "duplicate_request") == 1, "it came again")
    await asyncio.to_thread(steps.round)
    told = await again
    assert (told.status_code, told.json) == (200, {"status": "delivered", "seq": 1})
    assert count(engine, "inbox") == 1


async def test_a_source_with_too_many_waiting_gets_503(
    patient: Receiver, steps: Steps, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "MOST_WAITING_OF_A_SOURCE", 2)
    waiting = [asyncio.create_task(patient.post(body(f"u{n}", moment(n)))) for n in range(2)]
    await wait_until_stored(engine, 2)
    await asyncio.sleep(0)
    told = await patient.post(body("u9", moment(9)))
    assert told.status_code == 503
    assert "too many wait" in told.json["detail"]
    assert count(engine, "inbox") == 3, "it is stored all the same"
    told = await patient.post(path="/webhooks/unrouted", headers={"Prefer": "wait=5"})
    assert told.status_code == 200
    await asyncio.to_thread(steps.round)
    assert [(await answer).status_code for answer in waiting] == [200, 200]


def test_a_sender_that_hangs_up_makes_room_and_one_that_closed_its_half_is_told(
    config: Config, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "MOST_WAITING_OF_A_SOURCE", 1)
    with serve_receiver(database_url, config) as port:
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(webhook(b"Prefer: wait=60"))
            until(lambda: b"too many wait" in ask(port, webhook(b"Prefer: wait=0")), "the first one waits")
        until(lambda: b"not known after 0 s" in ask(port, webhook(b"Prefer: wait=0")), "there is room")
        told = ask(port, webhook(b"Prefer: wait=60"), half_close=True)
    assert status_of(told) == 503
    assert b"the sender has hung up" in told
    assert count(engine, "inbox") == 1


async def test_a_large_body_takes_no_memory_while_it_waits(
    config: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [body(f"u{number}", moment(number), pad="x" * 200_000) for number in range(2)]
    monkeypatch.setattr(app, "MEMORY", memory_for(len(large[0])))
    async with receiving(config) as made, asyncio.timeout(LONGEST_SECONDS / 2):
        waiting = asyncio.create_task(made.post(large[0], headers={"Prefer": "wait=60"}))
        await wait_until_stored(engine)
        told = await made.post(large[1], headers={"Prefer": "wait=0"})
        while "too much is being sent" in told.text:  # until the first one is waited for
            told = await made.post(large[1], headers={"Prefer": "wait=0"})
        assert "not known after 0 s" in told.text
        waiting.cancel()


@pytest.mark.parametrize(
    ("answer", "prefer", "patience"),
    [
        ("stored", None, None),
        ("stored", "wait=5", 5),
        ("stored", "respond-async, wait = 5;x=y", 5),
        ("stored", "wait=9999", LONGEST_WAIT_SECONDS),
        ("stored", "wait=soon", None),
        ("delivered", None, 0.3),
        ("delivered", "wait=5", 5),
    ],
)
def test_one_request_may_ask_for_it(config: Config, answer: str, prefer: str | None, patience: float | None) -> None:
    source = msgspec.structs.replace(config.sources["trivore"], answer=answer)
    assert wait_timeout(source, prefer) == patience


async def test_one_statement_asks_for_all_that_wait(database_url: str) -> None:
    seqs = await asyncio.to_thread(fill, database_url, [(f"u{n}", moment(n)) for n in range(300)])
    began = time.monotonic()
    waiting = OutcomeWaiter(partial(a_link, database_url))
    waits = [asyncio.create_task(waiting.wait_until_delivered(str(seq % 5), [seq], within=60)) for seq in seqs]
    await until_async(lambda: waiting.polls >= 5, "it asks again and again")
    await waiting.close()
    outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StillOpen}
    assert waiting.polls <= 1 + (time.monotonic() - began) / POLL_SECONDS


async def test_a_sender_that_waits_when_the_receiver_stops_is_told(database_url: str) -> None:
    seqs = await asyncio.to_thread(fill, database_url, [("u1", moment(1))])
    waiting = OutcomeWaiter(partial(a_link, database_url))
    wait = asyncio.create_task(waiting.wait_until_delivered("trivore", seqs, within=60))
    await until_async(lambda: waiting.polls, "it is waited for")
    await waiting.close()
    with pytest.raises(StillOpen, match="stopping"):
        await wait
