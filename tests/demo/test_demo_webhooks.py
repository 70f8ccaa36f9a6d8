"""No webhook of the demo identity service is lost, and each entity's arrive in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import falcon.asgi
import pytest
from falcon.asgi import Request, Response

from relay.demo.scenario import sample_user
from relay.demo.services import GROUP, USER, App, IdentityService, WebhookSender, read_object, served
from tests.helpers.waiting import until

WAIT = 60.0


class Receiver:
    """Takes webhooks; the first ones get the statuses it was made with, later ones 200."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)
        self.accepted: list[dict[str, str]] = []
        self.headers: list[Mapping[str, str]] = []
        self.app: App = falcon.asgi.App()
        self.app.add_route("/hook", self)

    async def on_post(self, req: Request, resp: Response) -> None:
        body = await read_object(req)
        resp.status = self._statuses.pop(0) if self._statuses else 200
        self.headers.append(req.headers)
        if resp.status == 200:
            self.accepted.append(body)


@contextmanager
def identity(url: str | None = None, **options: Any) -> Iterator[IdentityService]:  # noqa: ANN401  # of the sender
    service = IdentityService(WebhookSender(url, **options))
    try:
        yield service
    finally:
        service.webhooks.close()


@contextmanager
def reporting_to(receiver: Receiver, **options: Any) -> Iterator[IdentityService]:  # noqa: ANN401  # likewise
    with served(receiver.app) as hook, identity(f"{hook}/hook", **options) as service:
        yield service


def await_sent(service: IdentityService) -> None:
    until(lambda: service.webhooks.pending() == 0, "every webhook is accepted")


def test_changes_are_reported_in_the_classic_form_unless_they_are_silent() -> None:
    """Each webhook carries the extra headers, and the timestamp is the document's lastModified."""
    receiver = Receiver()
    with reporting_to(receiver, headers={"X-Webhook-Token": "t"}) as service:
        user = service.create(USER, sample_user(0))
        edited = service.replace(USER, user["id"], {})
        service.replace(USER, user["id"], {"username": "unseen"}, report=False)
        service.delete(USER, user["id"])
        await_sent(service)
        group = service.create(GROUP, {"name": "x"})
        await_sent(service)
    assert [(sent["id"], sent["entityType"], sent["eventType"]) for sent in receiver.accepted] == [
        (user["id"], "USER", "CREATE"),
        (user["id"], "USER", "UPDATE"),
        (user["id"], "USER", "DELETE"),
        (group["id"], "GROUP", "CREATE"),
    ]
    modified = [document["meta"]["lastModified"] for document in (user, edited)]
    assert [sent["timestamp"] for sent in receiver.accepted[:2]] == modified
    assert {(each["x-webhook-token"], each["content-type"]) for each in receiver.headers} == {("t", "application/json")}


def test_a_refused_webhook_is_sent_again_until_accepted_and_so_is_one_whose_answer_got_lost() -> None:
    """Any error status counts, and so do redirects; the screen gets every try."""
    receiver = Receiver(503, 401, 302, 500)
    tries: list[int | None] = []
    lost = iter([True])
    with reporting_to(
        receiver, on_webhook=lambda _, status: tries.append(status), loses_answer=lambda: next(lost, False)
    ) as service:
        service.create(USER, {})
        await_sent(service)
    assert tries == [503, 401, 302, 500, 200, 200]
    assert receiver.accepted == receiver.accepted[:1] * 2


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/hook"])
def test_nothing_waits_without_a_url_and_closing_gives_up_what_waits(url: str | None) -> None:
    before = set(threading.enumerate())
    with identity(url) as service:
        service.create(USER, {})
        assert service.webhooks.pending() == (url is not None)
    assert set(threading.enumerate()) <= before
