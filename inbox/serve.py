"""gunicorn's settings for the receiver; `gunicorn.conf.py` and `inbox serve` take them from here.

Every one can be overruled on gunicorn's command line, or by GUNICORN_CMD_ARGS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from sqlalchemy.exc import OperationalError
from uvicorn_worker import UvicornWorker

from inbox import config_file
from inbox.db import engine, migrate
from inbox.db.dialect import SQLITE
from inbox.errors import ConfigError
from inbox.wire import Wire


class Worker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker ships no types
    """uvicorn under gunicorn: its parser answers malformed requests with 400, where gunicorn's own ASGI worker drops them."""

    CONFIG_KWARGS = {  # noqa: RUF012  # the base class declares it so
        "loop": "uvloop",
        "http": Wire,
        "lifespan": "on",
        "ws": "none",
        "server_header": False,
    }


def _workers() -> int:
    """As many as there are processors; one on SQLite, where two only fight for the write lock."""
    try:
        url = config_file.read().database.url
    except ConfigError:
        return 1  # on_starting says what is wrong
    if url.startswith(SQLITE):
        return 1
    return int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count() or 1)


wsgi_app = "inbox.app:get_app()"
bind = "127.0.0.1:8000"
workers = _workers()
worker_class = "inbox.serve.Worker"
keepalive = 30
timeout = 30
graceful_timeout = 15
backlog = 2048
header_map = "refuse"  # dropping a header with an underscore in its name hides an attempt to pass for another header
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # the heartbeat must not wait for a full disk


def on_starting(_server: object) -> None:
    """Refuse to start with a configuration or a schema that can't work; a database that is down is waited for, with 503."""
    try:
        config = config_file.read()
        checked = engine.connect(config.database.url, application="inbox-receiver")
        try:
            migrate.require_current(checked)
        except OperationalError as error:
            print(f"inbox: the database does not answer, requests get 503 until it does: {error.orig}", file=sys.stderr)  # noqa: T201
        finally:
            checked.dispose()
        from inbox.app import create_app  # noqa: PLC0415  # only the master makes one to see that it can be made
        from inbox.clock import SystemClock  # noqa: PLC0415

        create_app(config, _never, SystemClock())
    except ConfigError as error:
        print(f"inbox: {error}", file=sys.stderr)  # noqa: T201  # logging is not set up yet
        sys.exit(2)


def _never() -> NoReturn:
    raise AssertionError("the master serves nothing")
