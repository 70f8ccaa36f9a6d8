"""A server that stays for all tests of a process, and serves the application of each: a start and a stop take long."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from typing import Any, cast

from relay.demo.services import App, served

_rest = contextlib.ExitStack()
atexit.register(_rest.close)


class _Stage:
    """An ASGI application that is whichever is given."""

    def __init__(self) -> None:
        self.app: Any = None
        self.url = _rest.enter_context(served(cast("App", self)))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's
        await self.app(scope, receive, send)


_free: list[_Stage] = []


@contextlib.contextmanager
def staged(app: App) -> Iterator[str]:
    """Serve an application on a server that is free; yields its URL."""
    stage = _free.pop() if _free else _Stage()
    stage.app = app
    try:
        yield stage.url
    finally:
        _free.append(stage)
