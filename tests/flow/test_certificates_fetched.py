"""Certificates are fetched from a real host over HTTPS, and its trouble delays no other webhook."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from falcon.testing import ASGIConductor, Result

from inbox.clock import SystemClock
from inbox.errors import Unavailable
from inbox.events.timestamps import rfc3339
from inbox.loader.load import parse_config
from inbox.receiver import fetcher
from inbox.receiver.app import create_app
from inbox.receiver.webhook import Services
from inbox.sources.keys import CertificateStore, CertificateUrl, MissingCertificate
from inbox.sources.presets.sns import _NAMES, _URL
from tests.helpers.receiver import Memory, Receiver
from tests.helpers.scripted import Act, ScriptedServer, answer, drip, drip_body, hang, send_hundred_megabytes
from tests.helpers.waiting import until_async
from tests.helpers.webhooks import TOKEN
from tests.sources import certified
from tests.sources.certified import CertificateHost, certificate_host, pem_of, signing_key

URL = CertificateUrl(certified.SNS_HOST, certified.SNS_PATH)
CONFIG = f"""
[database]
url = "sqlite:///not-there.db"
[sources.sns]
preset = "sns"
topics = ["{certified.TOPIC}"]
allow_sha1 = true
auth = {{ kind = "none" }}
[sources.other]
preset = "sns"
topics = ["{certified.TOPIC}"]
auth = {{ kind = "url_token", secrets = ["token"] }}
[sources.paypal]
preset = "paypal"
secrets = ["WEBHOOK"]
auth = {{ kind = "url_token", secrets = ["token"] }}
[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{TOKEN}"] }}
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[CertificateHost]:
    with certificate_host(tmp_path, certified.SNS_HOST) as host:
        yield host


# --- one fetch


def test_a_certificate_is_fetched_from_a_host_that_proves_its_name(host: CertificateHost, tmp_path: Path) -> None:
    host.serve(certified.SNS_PATH, certified.SNS_PEM)
    assert host.get()(URL) == certified.SNS_PEM
    assert host.asked == [f"{certified.SNS_HOST}{certified.SNS_PATH}"]
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get"):
        fetcher.get_over_https(URL, host.dial)
    with certificate_host(tmp_path, "evil.example") as other, pytest.raises(ssl.SSLCertVerificationError):
        other.get()(URL)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 204, 206, 304, 403, 404, 500, 503])
def test_any_answer_but_200_is_none_and_no_redirect_is_followed(host: CertificateHost, status: int) -> None:
    host.meet(certified.SNS_PATH, answer(status, location=f"https://{certified.SNS_HOST}/other.pem"))
    with pytest.raises(ValueError, match=f"answers {status}"):
        host.get()(URL)
    assert host.asked == [f"{certified.SNS_HOST}{certified.SNS_PATH}"]


def test_a_huge_answer_is_left(host: CertificateHost) -> None:
    host.meet(certified.SNS_PATH, send_hundred_megabytes(b"HTTP/1.1 200 OK\r\n\r\n"))
    with pytest.raises(ValueError, match="sends more than"):
        host.get()(URL)
    host.serve(certified.SNS_PATH, certified.SNS_PEM + b"\n" * (fetcher.LARGEST_BYTES - len(certified.SNS_PEM)))
    assert len(host.get()(URL)) == fetcher.LARGEST_BYTES


@pytest.mark.parametrize("slow", [drip(b"", b"X"), drip_body, hang], ids=["head", "body", "nothing"])
def test_a_slow_answer_is_cut_however_often_a_byte_comes(host: CertificateHost, slow: Act) -> None:
    host.meet(certified.SNS_PATH, slow)
    with pytest.raises((OSError, http.client.HTTPException)):
        host.get(within=0.3)(URL)


def test_a_host_that_never_shakes_hands_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = silent.getsockname()
        with pytest.raises(TimeoutError):
            fetcher.get_over_https(URL, lambda _: socket.create_connection(address, timeout=0.2), within=0.2)


# --- few at a time


class Held:
    """A way to certificates on which a fetch hangs until it is let go."""

    def __init__(self, answer: bytes = certified.SNS_PEM) -> None:
        self.let_go = threading.Event()
        self.asked: list[CertificateUrl] = []
        self.answer = answer

    def __call__(self, url: CertificateUrl) -> bytes:
        self.asked.append(url)
        self.let_go.wait(60)
        return self.answer


def missing(path: str = certified.SNS_PATH, store: CertificateStore | None = None) -> MissingCertificate:
    return MissingCertificate(CertificateUrl(certified.SNS_HOST, path), store or CertificateStore(_URL, _NAMES))


async def test_one_fetch_serves_all_that_wait_and_those_that_leave_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "LONGEST_SECONDS", 60.0)
    held, wanted = Held(), missing()
    fetching = fetcher.CertificateFetcher(held)
    waiting = [asyncio.create_task(fetching.fetch(wanted, certified.SNS_AT)) for _ in range(fetcher.MOST_WAITING)]
    await until_async(lambda: held.asked, "the fetch begins")
    with pytest.raises(Unavailable):
        await fetching.fetch(wanted, certified.SNS_AT)
    waiting.pop().cancel()
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(fetching.fetch(wanted, certified.SNS_AT)))
    hanging, fetching._get = fetching._get, lambda _: certified.SNS_PEM
    await fetching.fetch(missing(), certified.SNS_AT)  # a source beside the one whose host hangs gets its own
    fetching._get = hanging
    held.let_go.set()
    await asyncio.gather(*waiting)
    assert held.asked == [URL]


async def test_a_fetch_that_hangs_is_waited_for_once_and_is_stored_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "LONGEST_SECONDS", 0.05)
    held, store = Held(), CertificateStore(_URL, _NAMES)
    fetching = fetcher.CertificateFetcher(held)
    for _ in range(5):
        with pytest.raises(Unavailable):
            await fetching.fetch(missing(store=store), certified.SNS_AT)
    await until_async(lambda: held.asked, "its thread has begun")
    assert held.asked == [URL]
    for number in range(5):
        with pytest.raises(Unavailable):
            await fetching.fetch(missing(f"/{number}.pem", store), certified.SNS_AT)
    await until_async(lambda: len(held.asked) >= fetcher.MOST_AT_ONCE, "their threads have begun")
    assert len(held.asked) == fetcher.MOST_AT_ONCE
    held.let_go.set()
    await until_async(lambda: store._kept, "the certificate is there")


async def test_a_failed_fetch_is_delayed_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held, store = Held(pem_of("evil.example", signing_key())), CertificateStore(_URL, _NAMES)
    held.let_go.set()
    fetching = fetcher.CertificateFetcher(held)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(Unavailable):
                await fetching.fetch(missing(store=store), certified.SNS_AT)
        assert held.asked == [URL]
        monkeypatch.setattr(fetcher, "AGAIN_AFTER_SECONDS", 0.0)
        for number in range(100):
            with pytest.raises(Unavailable):
                await fetching.fetch(missing(f"/{number}.pem", store), certified.SNS_AT)
    (line,) = caplog.records
    assert f"no certificate from {URL}" in line.getMessage()
    assert "another name" in line.getMessage()
    (source,) = fetching._sources.values()
    assert len(source.again_at) <= 2, "those of long ago are forgotten"
    held.answer = certified.SNS_PEM
    await fetching.fetch(missing("/new.pem", store), certified.SNS_AT)


async def test_a_fetch_without_a_thread_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(Unavailable):
        await fetcher.CertificateFetcher(lambda _: certified.SNS_PEM).fetch(missing(), certified.SNS_AT)


# --- in the receiver


@contextlib.asynccontextmanager
async def receiving(host: CertificateHost) -> AsyncIterator[tuple[Receiver, Memory]]:
    memory, fetching = Memory(), fetcher.CertificateFetcher(host.get())
    app = create_app(parse_config(CONFIG), lambda: Services(memory, certificates=fetching), SystemClock())
    async with ASGIConductor(app) as conductor:
        yield Receiver(conductor), memory


async def post_message(receiver: Receiver, message: Mapping[str, str], path: str = "/webhooks/sns") -> Result:
    headers = {"Content-Type": "text/plain; charset=UTF-8", "X-Webhook-Token": ""}
    return await receiver.post(json.dumps(message).encode(), path=path, headers=headers)


async def post(receiver: Receiver, message: Mapping[str, str], path: str = "/webhooks/sns") -> int:
    return (await post_message(receiver, message, path)).status_code


async def test_messages_of_sns_are_stored_with_one_fetch_and_strangers_have_none_made(host: CertificateHost) -> None:
    host.serve(certified.SNS_PATH, certified.SNS_PEM)
    async with receiving(host) as (receiver, memory):
        stranger = certified.sign_sns(TopicArn="arn:aws:sns:eu-west-1:210987654321:orders")
        assert await post(receiver, stranger) == 401
        assert await post(receiver, certified.NOTIFICATION, "/webhooks/other/wrong") == 401
        assert await post(receiver, certified.NOTIFICATION, "/webhooks/nobody") == 401
        headers = {"PAYPAL-CERT-URL": f"https://api.paypal.com{certified.SNS_PATH}"}
        assert (
            await receiver.post(certified.PAYPAL_BODY, path="/webhooks/paypal/wrong", headers=headers)
        ).status_code == 401
        assert host.asked == []
        assert memory.rejected[0].reason == "its topic is not listed in this source's topics"
        assert memory.rejected[0].body is None

        assert await post(receiver, {**certified.NOTIFICATION, "Message": "forged"}) == 401
        assert len(host.asked) == 1, "it has the certificate fetched, and is refused by it"
        assert await post(receiver, certified.NOTIFICATION) == 200
        assert await post(receiver, certified.CONFIRMATION) == 200
        assert await post(receiver, certified.NOTIFICATION, "/webhooks/other/token") == 200
        assert len(host.asked) == 2, "one for each source, and none to confirm a subscription"
    assert [event.event_type for event in memory.events] == ["Notification", "SubscriptionConfirmation", "Notification"]
    assert certified.CONFIRMATION["SubscribeURL"].encode() in memory.events[1].body
    assert memory.rejected[-1].reason == "its signature is not by the key of its certificate"


async def test_a_transmission_of_paypal_has_its_certificate_fetched_and_sent_again_is_one_event(tmp_path: Path) -> None:
    now = SystemClock().now()
    sent = certified.sign_paypal(at=now, webhook="WEBHOOK", paypal_transmission_time=rfc3339(now))
    with certificate_host(tmp_path, certified.PAYPAL_HOST) as host:
        host.serve(certified.PAYPAL_PATH, pem_of(certified.PAYPAL_NAME, signing_key()))
        async with receiving(host) as (receiver, memory):
            for path, status in (("/token", 200), ("/token", 200), ("/wrong", 401), ("", 401)):
                answer = await receiver.post(sent.body, path=f"/webhooks/paypal{path}", headers=dict(sent.headers))
                assert answer.status_code == status
        assert host.asked == [f"{certified.PAYPAL_HOST}{certified.PAYPAL_PATH}"]
    assert len({event.dedup_key for event in memory.events}) == 1
    assert memory.events[0].headers["paypal-transmission-id"] == memory.events[0].dedup_key


async def test_other_webhooks_pass_while_the_host_hangs(host: CertificateHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetcher, "LONGEST_SECONDS", 60.0)
    let_go = threading.Event()

    def answer_late(server: ScriptedServer, connection: socket.socket) -> None:
        let_go.wait(60)
        answer(200, certified.SNS_PEM)(server, connection)

    host.meet(certified.SNS_PATH, answer_late)
    async with receiving(host) as (receiver, memory):
        try:
            asked = [
                asyncio.create_task(post(receiver, certified.NOTIFICATION)) for _ in range(fetcher.MOST_WAITING + 30)
            ]
            await until_async(lambda: host.asked, "the host is asked")
            trivore = await asyncio.gather(*(receiver.post() for _ in range(100)))
            assert {answer.status_code for answer in trivore} == {200}
            await until_async(lambda: sum(task.done() for task in asked) == 30, "those without a place have their 503")
            assert {task.result() for task in asked if task.done()} == {503}
        finally:
            let_go.set()
        answers = await asyncio.gather(*asked)
    assert sorted(answers) == [200] * fetcher.MOST_WAITING + [503] * 30
    assert memory.rejected == [], "what may be sent again is not kept as rejected"
    assert len(host.asked) == 1


@pytest.mark.parametrize("answer", [b"", b"<html>", certified.SNS_PEM[:500], b"x" * 100_000])
async def test_any_bad_answer_of_the_host_is_a_503_and_never_a_refusal(host: CertificateHost, answer: bytes) -> None:
    host.serve(certified.SNS_PATH, answer)
    async with receiving(host) as (receiver, memory):
        raw = await post_message(receiver, certified.NOTIFICATION)
        assert (raw.status_code, raw.headers["retry-after"]) == (503, "2")
        assert "can't be had now" in msgspec.json.decode(raw.content)["detail"]
        assert await post(receiver, certified.NOTIFICATION) == 503
        assert len(host.asked) == 1
    assert not memory.events
    assert not memory.rejected
