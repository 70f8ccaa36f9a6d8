"""gunicorn for the receiver and the operator's page: the worker, the log, start and reload."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gunicorn import glogging
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from uvicorn_worker import UvicornWorker

from inbox.config.model import Config
from inbox.db.dialect import trouble_text
from inbox.db.engine import connect
from inbox.errors import ConfigError
from inbox.http.protocol import HardenedHttpProtocol
from inbox.observe.logs import Format, LineFormatter, escape_lines, fields, without_message, write_stderr

_log = logging.getLogger("gunicorn.error")  # gunicorn's logger, so that its settings apply

WORKER_TMP_DIR = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # the heartbeat must not wait for a full disk


class HardenedWorker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker ships no types
    """uvicorn under gunicorn: it answers malformed requests with 400, while gunicorn's own ASGI worker drops them."""

    CONFIG_KWARGS = {  # noqa: RUF012  # the base class declares it so
        "loop": "uvloop",
        "http": HardenedHttpProtocol,
        "lifespan": "on",
        "ws": "none",
        "server_header": False,
    }

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # gunicorn's own
        super().__init__(*arguments, **options)
        # gunicorn wraps its listeners. uvloop detaches real sockets before it closes the descriptor, but closes other
        # objects afterwards (`UVSocketHandle._close`): each stop logged "Error while closing socket [Errno 9]".
        self.sockets: list[Any] = [listener.sock for listener in self.sockets]

    def init_process(self) -> None:
        """Prepare the new process before it serves."""
        _return_large_blocks()
        super().init_process()

    def init_signals(self) -> None:
        """Ignore SIGHUP, which is for the master: `pkill -HUP gunicorn` sends it to workers too, and it would kill them."""
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _PageProtocol(HardenedHttpProtocol):
    allows_slow_readers = True
    makes_room = True
    longest_target = 24 * 1024  # bytes; a form with 200 selected rows, or a long entity id


class PageWorker(HardenedWorker):
    """The worker of the operator's page, whose responses may be large.

    It keeps the peer's address and ignores `X-Forwarded-For`: the page decides by the address whether to trust a proxy.
    """

    CONFIG_KWARGS = {**HardenedWorker.CONFIG_KWARGS, "http": _PageProtocol, "proxy_headers": False}  # noqa: RUF012  # likewise


_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 1024 * 1024


def _return_large_blocks() -> None:
    """Make the C library return the freed memory of large bodies to the system.

    glibc stops doing so after the first large block is freed: it then keeps blocks of that size in each thread
    (mallopt(3), M_MMAP_THRESHOLD). Other systems lack both the function and the behaviour.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


FILES_BESIDES = 100
"""Files that a worker opens in addition to its connections."""


def allow_files(connections: int, setting: str, *, program: str = "inbox") -> None:
    """Raise the limit of open files to fit the connections, which `setting` limits; most systems allow it."""
    least = connections + FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < least:
        most = least if hard == resource.RLIM_INFINITY else min(hard, least)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < least:
            write_stderr(f"{program}: a process may open {most} files here, too few for {setting} = {connections}")


def escape_logs(log: glogging.Logger, form: Format = "text") -> None:
    """Escape outside text in log lines, and give all lines the same format."""
    escape_lines([*log.error_log.handlers, *log.access_log.handlers], glogging.Logger.datefmt, form)
    if logging.lastResort is not None:  # for our loggers, which gunicorn does not configure
        logging.lastResort.setFormatter(LineFormatter(glogging.Logger.error_fmt))
        escape_lines([logging.lastResort], None, form)


class LineLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger, with our line format from the first line on."""

    form: Format = "text"
    """Log format of the active configuration, set before gunicorn creates its logger."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401  # gunicorn's
        """Create the handlers, at the start and at each reload."""
        super().setup(cfg)
        escape_logs(self, self.form)


class ActiveApp:
    """The application of the last valid configuration. The master replaces it; a worker keeps the one it was forked with."""

    def __init__(self) -> None:
        self.app: Any = None
        self.config: Config | None = None

    def activate(self, app: Any, config: Config) -> Config:  # noqa: ANN401  # an ASGI application
        """Serve this configuration in all workers forked from now on."""
        self.app, self.config = app, config
        LineLogger.form = config.logs.format
        return config

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's, handed through
        """Call the active ASGI application."""
        if self.app is None:
            raise RuntimeError("gunicorn's settings have to run on_starting, which reads the configuration")
        await self.app(scope, receive, send)


def start_app(
    server: Any,  # noqa: ANN401  # gunicorn's
    activate: Callable[[], Config],
    *,
    application: str,
    checks: Sequence[Callable[[Engine], object]],
    away: str,
    then: Callable[[Config], object],
) -> None:
    """Activate the configuration before any worker is forked; exit if it or the schema is unusable.

    Args:
        server: gunicorn's master.
        activate: reads and activates the configuration.
        application: application name for the database; its first word is the program.
        checks: requirements of the database, skipped while it is down.
        away: consequence of a database that does not answer, for a log line.
        then: runs after successful activation.
    """
    escape_logs(server.log, LineLogger.form)  # a custom logger_class may have created the handlers
    try:
        config = activate()
        escape_logs(server.log, LineLogger.form)
        checked = connect(config.database.url, application=application)
        try:
            for check in checks:
                check(checked)
        except OperationalError as error:
            text = "the database does not answer, %s until it does: %s"
            _log.warning(text, away, trouble_text(error), extra=fields("database_trouble"))
        finally:
            checked.dispose()
        then(config)
    except ConfigError as error:
        for mistake in str(error).splitlines():
            write_stderr(f"{application.partition('-')[0]}: {mistake}")
        sys.exit(2)


def reload_app(server: Any, activate: Callable[[], Config]) -> Config | None:  # noqa: ANN401  # gunicorn's
    """Activate the configuration on SIGHUP, before gunicorn replaces the workers; None if the old one stays.

    An exception in gunicorn's hook would end the master and all workers.
    """
    escape_logs(server.log, LineLogger.form)
    try:
        config = activate()
    except ConfigError as error:
        for mistake in str(error).splitlines():
            _log.error("reload refused: %s", mistake, extra=fields("reload_refused", error=mistake))
    except Exception as bug:  # noqa: BLE001  # as above
        _log.error("reload refused: a bug", exc_info=without_message(bug), extra=fields("reload_refused"))
    else:
        escape_logs(server.log, LineLogger.form)
        return config
    _log.error("reload refused: the old configuration stays", extra=fields("reload_refused"))
    return None
