"""Answers of the API, and its description."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import falcon
import msgspec
from falcon.asgi import Request, Response

from relay.web import openapi
from relay.web.screens import SCREENS

encode = msgspec.json.Encoder(enc_hook=str, decimal_format="number").encode
"""Encode an answer. Figures that Postgres has as numeric are numbers."""


class ApiDocument:
    """`/api/v1/openapi.json`: the description of the API, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: bytes | None = None

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Answer with the document."""
        if self._made is None:
            self._made = await asyncio.to_thread(self._make)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._made

    on_head = on_get

    @staticmethod
    def _make() -> bytes:
        return msgspec.json.encode(openapi.document(SCREENS, version("inbox-relay")))
