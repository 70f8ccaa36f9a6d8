"""gunicorn for both servers, the receiver and the operator's page: the worker, the log, and what happens at start and reload."""

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

_log = logging.getLogger("gunicorn.error")  # gunicorn's own: it goes where gunicorn's settings send it

WORKER_TMP_DIR = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # the heartbeat must not wait for a full disk


class HardenedWorker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker ships no types
    """uvicorn under gunicorn: its parser answers malformed requests with 400, where gunicorn's own ASGI worker drops them."""

    CONFIG_KWARGS = {  # noqa: RUF012  # the base class declares it so
        "loop": "uvloop",
        "http": HardenedHttpProtocol,
        "lifespan": "on",
        "ws": "none",
        "server_header": False,
    }

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # gunicorn's own
        super().__init__(*arguments, **options)
        # gunicorn wraps its listeners. uvloop lets go of a real socket before it closes the descriptor, but closes another
        # object after that (`UVSocketHandle._close`): each stop logged "Error while closing socket [Errno 9]".
        self.sockets: list[Any] = [listener.sock for listener in self.sockets]

    def init_process(self) -> None:
        """Run in the new process, before it serves."""
        _return_large_blocks()
        super().init_process()

    def init_signals(self) -> None:
        """Leave SIGHUP to the master: a worker that gets it too, as from `pkill -HUP gunicorn`, would die of it."""
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _PageProtocol(HardenedHttpProtocol):
    allows_slow_readers = True
    makes_room = True
    longest_target = 24 * 1024  # a form of 200 chosen rows, or a long id of an entity; less than the largest head


class PageWorker(HardenedWorker):
    """The worker of the operator's page, whose answers may be large.

    An address stays the one that is connected, whatever `X-Forwarded-For` says: the page trusts the header of a proxy by it.
    """

    CONFIG_KWARGS = {**HardenedWorker.CONFIG_KWARGS, "http": _PageProtocol, "proxy_headers": False}  # noqa: RUF012  # likewise


_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 1024 * 1024


def _return_large_blocks() -> None:
    """Return the memory of large bodies to the system once it is freed.

    glibc does so by itself until the first is freed; then it keeps blocks of that size, in each thread (mallopt(3),
    M_MMAP_THRESHOLD). Other systems have no such function, and no such habit.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


FILES_BESIDES = 100
"""Files that a worker opens besides its connections."""


def allow_files(connections: int, setting: str, *, program: str = "inbox") -> None:
    """Raise the limit of open files to the limit of connections, which `setting` names; most systems allow that on request."""
    least = connections + FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < least:
        most = least if hard == resource.RLIM_INFINITY else min(hard, least)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < least:
            write_stderr(f"{program}: a process may open {most} files here, too few for {setting} = {connections}")


def escape_logs(log: glogging.Logger, form: Format = "text") -> None:
    """Let nothing from outside break or forge a line of the log, and give all lines one form, with one form of time."""
    escape_lines([*log.error_log.handlers, *log.access_log.handlers], glogging.Logger.datefmt, form)
    if logging.lastResort is not None:  # for our loggers, which gunicorn does not know
        logging.lastResort.setFormatter(LineFormatter(glogging.Logger.error_fmt))
        escape_lines([logging.lastResort], None, form)


class LineLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger with lines like ours, from its first one on."""

    form: Format = "text"
    """The form of the configuration that is active; both servers set it before gunicorn makes its logger."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401  # gunicorn's
        """Make the handlers, at the start and at each reload."""
        super().setup(cfg)
        escape_logs(self, self.form)


class ActiveApp:
    """The application of the last good configuration. The master changes it; a worker keeps what it was forked with."""

    def __init__(self) -> None:
        self.app: Any = None
        self.config: Config | None = None

    def activate(self, app: Any, config: Config) -> Config:  # noqa: ANN401  # an ASGI application
        """Serve with a configuration, in workers that are forked from now on."""
        self.app, self.config = app, config
        LineLogger.form = config.logs.format
        return config

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's, handed through
        """The ASGI application."""
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
    """Activate the configuration before any worker is forked, and exit if it or the schema can't work.

    Args:
        server: gunicorn's master.
        activate: activates the configuration of the file.
        application: name at the database; its first word is the program's.
        checks: what the database must have. While it is down, the server starts without them.
        away: end of a log line, which says what happens until the database answers.
        then: the rest, where everything is right.
    """
    escape_logs(server.log, LineLogger.form)  # an operator's own logger_class may have made them
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
    """Activate the configuration on SIGHUP, before gunicorn replaces the workers; None where the old one stays, as the log says.

    An exception in gunicorn's hook would end the master, and every worker with it.
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
