"""gunicorn's settings for the operator's page, used by `relay web`.

There is one worker, because one reader refreshes all open pages. The master reads the configuration and makes the
application, and the worker inherits it by fork. So a worker that replaces a dead one serves the same configuration.
"""

from __future__ import annotations

import ipaddress
import logging
from contextlib import suppress
from typing import Any

from inbox.config.model import Config
from inbox.db import migrate
from inbox.errors import ConfigError
from inbox.gunicorn_worker import WORKER_TMP_DIR, ActiveApp, LineLogger, allow_files, reload_app, start_app
from inbox.loader.load import load_file, read_config
from inbox.observe.logs import fields
from relay.web.app import CONNECTIONS, make_page
from relay.web.guard import Sessions

_log = logging.getLogger("gunicorn.error")  # gunicorn's own, with its handlers


page, sessions = ActiveApp(), Sessions()


def _activate(server: Any) -> Config:  # noqa: ANN401  # gunicorn's
    """Read and activate the configuration; proxies in gunicorn's `forwarded_allow_ips` are trusted for client addresses."""
    file = load_file()
    app = file.make(lambda config: make_page(config, server.cfg.forwarded_allow_ips, sessions))
    return page.activate(app, file.config)


with suppress(ConfigError):  # on_starting reports the mistake
    LineLogger.form = read_config().logs.format  # gunicorn writes a line before it calls on_starting

wsgi_app = "relay.web.gunicorn_settings:page"
bind = "127.0.0.1:8025"
workers = 1
worker_class = "inbox.gunicorn_worker.PageWorker"
logger_class = "inbox.gunicorn_worker.LineLogger"
keepalive = 30
timeout = 30
graceful_timeout = 10
backlog = 256
control_socket_disable = True
worker_tmp_dir = WORKER_TMP_DIR


def on_starting(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Exit if the configuration or the schema is unusable; if the database is down, start and let the page report it."""
    start_app(
        server,
        lambda: _activate(server),
        application="relay-web",
        checks=(migrate.require_current,),
        away="the page reports it",
        then=lambda _: allow_files(CONNECTIONS, "the page's connections", program="relay"),
    )


def on_reload(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Reload the configuration on SIGHUP; keep the old one if the new one is unusable."""
    if reload_app(server, lambda: _activate(server)) is not None:
        _log.info("reloaded", extra=fields("reloaded"))


def when_ready(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Log the address of the page."""
    is_plain = page.config is None or not (page.config.web.origin or "").lower().startswith("https:")
    for listener in server.LISTENERS:
        _log.info("the operator's page is at %s", listener, extra=fields("started"))
        if is_plain and not is_of_this_host(listener.getsockname()):
            _log.warning(
                "%s is open to other hosts without TLS: passwords and cookies can be read on the network; put a proxy with TLS"
                " in front of it, and set [web] origin",
                listener,
                extra=fields("open_without_tls"),
            )


def is_of_this_host(address: object) -> bool:
    """Return whether a listener is reachable only from this host: at a loopback address or a Unix socket."""
    return not isinstance(address, tuple) or ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
