"""One of each trouble of docs/how-to/troubleshoot.md, made at a real receiver, relay and database; and what they say."""

from __future__ import annotations

import asyncio
import hmac
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from inbox.loader.load import parse_config
from tests.destinations.calling import resolving_to
from tests.helpers.delivering import config_text, deliver, failed
from tests.helpers.outage import down
from tests.helpers.processes import Site, site
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.scripted import Act, ScriptedServer, answer, closed_port, hang, serving
from tests.helpers.webhooks import TOKEN, body

CONFIG = """
[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = ["{token}"] }}
max_body = 1000
[[sources.trivore.sweeps]]
api = "identity"
path = "/changes"
entity_type = "USER"
items = "items"
id = "id"
modified = "modified"

[sources.github]
preset = "github"
secrets = ["a-secret"]

[sources.stripe]
preset = "stripe"
secrets = ["a-secret"]

[apis.identity]
base_url = "{url}"
allow_private = true
allow_http = true

[destinations.mapping]
kind = "slack"
url = "{url}/ok"
text = "{{event.body.name}}"
allow_private = true
allow_http = true

[destinations.crm]
kind = "sync"
base_url = "{url}"
allow_private = true
allow_http = true
"""
FORWARD = """
[destinations.{name}]
kind = "forward"
url = "{url}"
allow_private = true
allow_http = true
timeout = "{timeout}"
"""
ROUTE = """
[routes.to-{name}]
source = "trivore"
destination = "{name}"
when = {{ entity_type = ["USER"] }}
{more}
retry = {{ schedule = {schedule} }}
"""
SYNC = """
[routes.to-crm.sync]
fetch = { api = "identity", path = "/user/{event.entity_id}", modified = "modified", tolerance = "1s" }
find = { path = "/contacts", params = { id = "{event.entity_id}" }, verify = false }
create = { path = "/contacts" }
update = { path = "/contacts/{target.id}" }
delete = { path = "/contacts/{target.id}" }
map = { name = "entity.name" }
"""
ANSWERS: dict[str, list[Act]] = {
    "POST /exhausted": [answer(500)],
    "POST /rejected": [answer(400)],
    "POST /blocking": [answer(400)],
    "POST /auth": [answer(401)],
    "POST /redirect": [answer(302)],
    "POST /slow": [hang],
    "GET /user/u1": [answer(200, {"id": "u1", "modified": "2025-01-01T00:00:00Z", "name": "Ada"})],
}


def configuration(server: ScriptedServer, secure: ScriptedServer) -> str:
    """A route for each trouble, all of one source."""
    urls = {name: f"{server.url}/{name}" for name in ("exhausted", "rejected", "blocking", "auth", "redirect", "slow")}
    urls |= {"tls": f"{secure.url}/", "refused": f"http://127.0.0.1:{closed_port()}/", "everything": f"{server.url}/ok"}
    text = CONFIG.format(token=TOKEN, url=server.url)
    for name, url in urls.items():
        text += FORWARD.format(name=name, url=url, timeout="200ms" if name == "slow" else "5s")
    for name in (*urls, "mapping", "crm"):
        schedule = {"exhausted": [], "slow": [], "rejected": ["0s"], "blocking": ["0s"]}.get(name, ["1h"])
        more = 'on_dead = "block"' if name == "blocking" else ""
        text += ROUTE.format(name=name, schedule=json.dumps(schedule), more=more)
    return text.replace("[routes.to-everything]", "[routes.everything]") + SYNC


async def answers_of(receiver: Receiver) -> dict[str, str]:
    """Send what is accepted, and what is not; give the answers by trouble."""
    found: dict[str, str] = {}

    async def send(name: str, payload: bytes | None = None, **more: object) -> None:
        result = await receiver.post(payload, **more)  # type: ignore[arg-type]  # the receiver's own options
        found[name] = result.text

    await send("accepted")
    await send("duplicate")
    await send("unrouted", body("g1", entityType="GROUP"))
    await send("secret", headers={"X-Webhook-Token": "another"})
    await send("unknown", path="/webhooks/nobody")
    forged = hmac.digest(b"another", b"{}", "sha256").hex()
    await send("signature", b"{}", path="/webhooks/github", headers={"X-Hub-Signature-256": f"sha256={forged}"})
    await send("clock", b"{}", path="/webhooks/stripe", headers={"Stripe-Signature": f"t=1700000000,v1={forged}"})
    await send("path", path="/webhook/trivore")
    await send("large", body("x" * 1000))
    await send("type", headers={"Content-Type": "application/x-www-form-urlencoded"})
    await send("invalid", b'{"entityType": "USER", "eventType": "UPDATE", "timestamp": "2026-01-01T00:00:00Z"}')
    return found


async def unavailable(receiver: Receiver, database_url: str) -> str:
    """Send a webhook while nothing can be written. It may be stored all the same, as the answer says, so no route takes it."""
    with down(database_url):
        return (await receiver.post(body("g9", entityType="GROUP"))).text


@contextmanager
def troubles(folder: Path, database_url: str) -> Iterator[dict[str, str]]:
    """All that the product says, by the trouble that it says it of."""
    with (
        serving(answer(200), routes={asked: list(acts) for asked, acts in ANSWERS.items()}) as server,
        serving(answer(200), tls=True) as secure,
    ):
        text = configuration(server, secure)
        parsed = parse_config(f"[database]\nurl = {json.dumps(database_url)}\n{text}")
        with site(folder, f"[database]\nurl = {json.dumps(database_url)}\n{text}") as place:
            found = {"empty": said(place, "inbox", "rejected"), "no-relay": said(place, "relay", "status")}

            async def receive() -> None:
                async with receiving(parsed) as receiver:
                    found.update(await answers_of(receiver))
                async with receiving(parsed) as receiver:
                    found["unavailable"] = await unavailable(receiver, database_url)

            asyncio.run(receive())
            said(place, "relay", "pause", "--route", "everything", "--reason", "we look into it", "--yes")
            relay = place.relay("--drain")
            assert relay.ends(within=60) == 0, relay.output
            found |= {
                "rejected": said(place, "inbox", "rejected"),
                "list": said(place, "inbox", "list"),
                "dead": said(place, "relay", "dead"),
                "status": said(place, "relay", "status"),
                "sweep-fails": sweep(place, server, answer(403)),
                "sweep-finds": sweep(
                    place, server, answer(200, {"items": [{"id": "u2", "modified": "2026-01-02T00:00:00Z"}]})
                ),
            }
            found |= not_started(folder, place, text)
        yield found | {"private": private()}


def sweep(place: Site, server: ScriptedServer, act: Act) -> str:
    """Ask the source for its changes, which it answers so."""
    server.acts[:] = [act]
    return said(place, "relay", "sweep", "--source", "trivore")


def said(place: Site, side: str, *arguments: str, **environment: str) -> str:
    """Run a command; give all that it says."""
    ended = place.invoke(side, *arguments, **environment)
    return ended.stdout + ended.stderr


def private() -> str:
    """Call a name that resolves to a private address."""
    with mock.patch.object(socket, "getaddrinfo", resolving_to("10.0.0.5")):
        return failed(deliver(config_text("forward", 'url = "https://crm.example.com/hook"'))).error


def not_started(folder: Path, place: Site, text: str) -> dict[str, str]:
    """Start programs that can't be started."""
    found = {}
    empty = f"sqlite:///{folder / 'empty.db'}"
    found["schema"] = place.run("relay", "run", "--drain", INBOX_DATABASE_URL=empty).stderr
    nowhere = f"postgresql+psycopg://127.0.0.1:{closed_port()}/inbox"
    found["database"] = said(place, "inbox", "list", INBOX_DATABASE_URL=nowhere)
    shutil.copy(folder / "inbox.db", folder / "locked.db")
    locked = f"sqlite:///{folder / 'locked.db'}"
    with suppress(KeyError), down(locked):
        found["locked"] = said(
            place, "relay", "pause", "--route", "to-auth", "--reason", "try", "--yes", INBOX_DATABASE_URL=locked
        )
    place.configure(text.replace('"a-secret"', '"env:NO_SUCH_SECRET"'))
    receiver = place.refused_receiver(INBOX_DATABASE_URL=f"sqlite:///{folder / 'inbox.db'}")
    assert receiver.ends() != 0
    found["secret-unset"] = receiver.output
    place.configure('[sources.trivore]\npreset = "trivor"\nauth = { kind = "none" }\n')
    found["mistake"] = said(place, "inbox", "list")
    return found
