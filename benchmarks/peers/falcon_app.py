"""A bare Falcon ASGI app that parses the same JSON: the cost of HTTP and the framework alone."""

from __future__ import annotations

import falcon.asgi
from falcon.asgi import Request, Response


class Parsed:
    """Answers each webhook with valid JSON."""

    async def on_post(self, request: Request, response: Response) -> None:
        event = await request.get_media()
        response.media = {"status": "accepted", "seq": len(event["id"])}


class Ready:
    """Answers the health check."""

    async def on_get(self, _request: Request, response: Response) -> None:
        response.data = b"ok"


app = falcon.asgi.App()
app.add_route("/webhooks/trivore", Parsed())
app.add_route("/health/ready", Ready())
