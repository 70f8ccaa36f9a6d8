"""The page of a configuration, ready to be served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.config.types import Network
from relay.web.access.accounts import check_accounts
from relay.web.access.guard import Guard, Sessions
from relay.web.app import App, create_app
from relay.web.reading import Readers


class _Closing:
    """Falcon middleware that closes the connections when the worker stops."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    async def process_shutdown(self, _scope: Mapping[str, Any], _event: Mapping[str, Any]) -> None:
        """Close them. The server calls this after the last request."""
        self._readers.close()


def page_of(config: Config, forwarding: Iterable[str] = (), sessions: Sessions | None = None) -> App:
    """Make the application. Nothing is connected yet: a process that is forked later may serve it.

    Args:
        config: the configuration.
        forwarding: addresses and networks of proxies, as gunicorn's `forwarded_allow_ips`.
        sessions: those that last longer than this configuration.

    Raises:
        ConfigError: nobody may use the page, or who may can't be read. The text has a line for each mistake.
    """
    clock = SystemClock()
    check_accounts(config.web)
    # `*` is nobody here: who believes every address would let a stranger choose the one whose attempts are counted.
    networks = [Network.parse(each) for each in forwarding if each != "*"]
    readers = Readers(config, clock)
    app = create_app(readers, clock, Guard(config.web, clock, sessions or Sessions(), forwarding=networks))
    app.add_middleware(_Closing(readers))
    return app
