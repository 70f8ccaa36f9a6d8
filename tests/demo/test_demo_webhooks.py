"""No webhook of the demo identity service is lost, and each entity's arrive in order."""

from __future__ import annotations

import itertools
import random
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta

import falcon

from relay.demo.entities import GROUP, USER
from relay.demo.identity import create_app
from relay.demo.people import sample_edit, sample_user
from relay.demo.server import serve

START = datetime(2018, 9, 21, 6, 29, 5, 708_000, tzinfo=UTC)
WAIT = 10.0


def ticking() -> Callable[[], datetime]:
    """A clock that goes on by a second whenever it is read."""
    seconds = itertools.count()
    return lambda: START + timedelta(seconds=next(seconds))


class Receiver:
    """Takes webhooks; the first ones get the statuses it was made with, later ones 200."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self._lock = threading.Lock()
        self.accepted: list[dict[str, str]] = []
        self.headers: list[Mapping[str, str]] = []
        self.app = falcon.App()
        self.app.add_route("/hook", self)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        body = req.get_media()
        with self._lock:
            status = self._statuses.pop(0) if self._statuses else 200
            self.headers.append(req.headers)
            if status == 200:
                self.accepted.append(body)
        resp.status = falcon.code_to_http_status(status)


def test_changes_are_told_in_the_classic_form() -> None:
    """Each webhook carries the extra headers, and the timestamp is the document's lastModified."""
    receiver = Receiver()
    with serve(receiver.app) as hook:
        service = create_app(f"{hook.url}/hook", webhook_headers={"X-Webhook-Token": "t"}, now=ticking())
        with closing(service):
            user = service.create(USER, sample_user(0))
            edited = service.replace(USER, user["id"], sample_edit(user, random.Random(1)))
            service.delete(USER, user["id"])
            assert service.wait_until_sent(WAIT)
            assert service.pending_webhooks() == 0
    assert [(sent["id"], sent["entityType"], sent["eventType"]) for sent in receiver.accepted] == [
        (user["id"], "USER", "CREATE"),
        (user["id"], "USER", "UPDATE"),
        (user["id"], "USER", "DELETE"),
    ]
    assert receiver.accepted[0]["timestamp"] == user["meta"]["lastModified"]
    assert receiver.accepted[1]["timestamp"] == edited["meta"]["lastModified"]
    assert all(headers["X-WEBHOOK-TOKEN"] == "t" for headers in receiver.headers)
    assert all(headers["CONTENT-TYPE"] == "application/json" for headers in receiver.headers)


def test_changes_are_told_in_the_typed_form() -> None:
    receiver = Receiver()
    with serve(receiver.app) as hook, closing(create_app(f"{hook.url}/hook", form="typed", now=ticking())) as service:
        for entity_type in (USER, GROUP):
            body = {"username": "x", "name": {}} if entity_type is USER else {"name": "x"}
            entity_id = service.create(entity_type, body)["id"]
            service.replace(entity_type, entity_id, body)
            service.delete(entity_type, entity_id)
            assert service.wait_until_sent(WAIT)
    assert [sent["type"] for sent in receiver.accepted] == [
        *("USER_CREATE", "USER_EDIT", "USER_DELETE"),
        *("GROUP_CREATE", "GROUP_EDIT", "GROUP_DELETE"),
    ]
    assert set(receiver.accepted[0]) == {"id", "type", "time"}


def test_a_refused_webhook_is_sent_again_until_accepted() -> None:
    """Any error status counts, and so do redirects; the screen hears of every try."""
    receiver = Receiver(503, 401, 302, 500)
    tries: list[int | None] = []
    with (
        serve(receiver.app) as hook,
        closing(create_app(f"{hook.url}/hook", on_webhook=lambda _, status: tries.append(status))) as service,
    ):
        service.create(USER, {})
        assert service.wait_until_sent(WAIT)
    assert tries == [503, 401, 302, 500, 200]
    assert len(receiver.accepted) == 1


def test_webhooks_wait_for_a_receiver_that_is_down() -> None:
    """Changes made while nobody listens arrive once somebody does."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))  # bound but not listening: the port refuses connections
        port = placeholder.getsockname()[1]
        refused = threading.Event()
        service = create_app(
            f"http://127.0.0.1:{port}/hook", on_webhook=lambda _, status: refused.set() if status is None else None
        )
        with closing(service):
            service.create(USER, {})
            assert refused.wait(WAIT)
            assert service.pending_webhooks() == 1
            assert not service.wait_until_sent(0)
            receiver = Receiver()
            with serve(receiver.app) as hook:
                service.send_webhooks_to(f"{hook.url}/hook")
                assert service.wait_until_sent(WAIT)
    assert len(receiver.accepted) == 1


def test_each_entity_keeps_its_order_while_the_receiver_fails_at_random() -> None:
    receiver = Receiver(*random.Random(7).choices([200, 503], k=120))
    with serve(receiver.app) as hook, closing(create_app(f"{hook.url}/hook", now=ticking())) as service:
        users = [service.create(USER, sample_user(number)) for number in range(8)]
        for _ in range(9):
            for user in users:
                service.replace(USER, user["id"], user)
        assert service.wait_until_sent(WAIT * 3)
    assert len(receiver.accepted) == 80
    for user in users:
        times = [sent["timestamp"] for sent in receiver.accepted if sent["id"] == user["id"]]
        assert len(times) == 10
        assert times == sorted(times)


def test_one_entity_that_is_refused_does_not_delay_the_others() -> None:
    service_id: list[str] = []

    class Picky(Receiver):
        def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
            body = req.get_media()
            if body["id"] == service_id[0] and len(self.accepted) < 5:
                resp.status = falcon.HTTP_503
            else:
                self.accepted.append(body)

    receiver = Picky()
    with serve(receiver.app) as hook, closing(create_app(senders=1)) as service:
        service_id.append(service.create(USER, {})["id"])
        service.send_webhooks_to(f"{hook.url}/hook")
        service.replace(USER, service_id[0], {})
        for _ in range(5):
            service.create(USER, {})
        assert service.wait_until_sent(WAIT)
    assert [sent["id"] == service_id[0] for sent in receiver.accepted] == [False] * 5 + [True]


def test_without_a_url_no_webhook_waits() -> None:
    with closing(create_app()) as service:
        service.create(USER, {})
        assert service.pending_webhooks() == 0
        assert service.wait_until_sent(0)
