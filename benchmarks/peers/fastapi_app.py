"""A receiver as a user might write it: FastAPI, a Pydantic model, and SQLAlchemy's async engine.

Each request stores the same three rows as the product's, in a transaction that commits before the response. Statements are
built once for the caches of SQLAlchemy and the driver. On SQLite, one connection serves all requests, as several would only
wait for the write lock.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import PoolProxiedConnection

from benchmarks.harness import TOKEN
from inbox.db.schema import inbox, inbox_payload, open_delivery

ROUTE = "everything"
URL = make_url(os.environ["PEER_DATABASE_URL"])
IS_SQLITE = URL.get_backend_name() == "sqlite"
CONNECTIONS = int(os.environ["PEER_CONNECTIONS"])
"""Connections of this process."""
ENGINE = create_async_engine(
    URL.set(drivername="sqlite+aiosqlite" if IS_SQLITE else "postgresql+asyncpg"), pool_size=CONNECTIONS, max_overflow=0
)
STORE = (
    (sqlite.insert(inbox) if IS_SQLITE else postgresql.insert(inbox))
    .on_conflict_do_nothing(index_elements=["source", "dedup_key"])
    .returning(inbox.c.seq)
)
STORE_PAYLOAD, STORE_DELIVERY = inbox_payload.insert(), open_delivery.insert()


@event.listens_for(ENGINE.sync_engine, "connect")
def _prepare(connection: PoolProxiedConnection, _record: object) -> None:
    if IS_SQLITE:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()


class Webhook(BaseModel):
    """The sender's event."""

    id: str
    entityType: str  # noqa: N815  # the sender's names
    eventType: str  # noqa: N815
    timestamp: datetime


@asynccontextmanager
async def _disposing(_app: FastAPI) -> AsyncIterator[None]:
    yield
    await ENGINE.dispose()


app = FastAPI(lifespan=_disposing, openapi_url=None)


@app.get("/health/ready")
async def ready() -> str:
    return "ready"


@app.post("/webhooks/trivore")
async def receive(request: Request, x_webhook_token: Annotated[str, Header()]) -> dict[str, Any]:
    if not secrets.compare_digest(x_webhook_token, TOKEN):
        raise HTTPException(401)
    body = await request.body()
    webhook = Webhook.model_validate_json(body)
    row = {
        "source": "trivore",
        "dedup_key": f"{webhook.timestamp:%Y%m%d%H%M%S%f}000|{webhook.id}|{webhook.entityType}|{webhook.eventType}",
        "entity_type": webhook.entityType,
        "entity_id": webhook.id,
        "event_type": webhook.eventType,
        "action": webhook.eventType.lower(),
        "occurred_at": webhook.timestamp,
        "received_at": datetime.now(UTC),  # noqa: TID251  # a peer has no clock of the product's
        "routes": [ROUTE],
        "content_type": request.headers["content-type"],
        "body_bytes": len(body),
        "body_is_text": True,
        "body_sha256": hashlib.sha256(body).digest(),
    }
    headers = {name: request.headers[name] for name in ("content-type", "user-agent")}
    async with ENGINE.begin() as connection:
        seq = (await connection.execute(STORE, row)).scalar_one_or_none()
        if seq is None:
            return {"status": "duplicate"}
        await connection.execute(STORE_PAYLOAD, {"seq": seq, "headers": headers, "body": body})
        lane = f"{webhook.entityType}|{webhook.id}"
        delivery = {"seq": seq, "route": ROUTE, "lane": lane, "occurred_at": webhook.timestamp, "state": "received"}
        await connection.execute(STORE_DELIVERY, delivery)
    return {"status": "accepted", "seq": seq}
