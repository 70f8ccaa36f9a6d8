"""gunicorn for both servers, the receiver and the operator's page: the worker, the lines of the log, and limits of a process."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gunicorn import glogging
from uvicorn_worker import UvicornWorker

from inbox.errors import ConfigError
from inbox.http.protocol import HardenedHttpProtocol
from inbox.observe.logs import Format, LineFormatter, escape_lines, fields, without_message, write_stderr

Made = TypeVar("Made")

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


def reactivate(activate: Callable[[], Made]) -> Made | None:
    """Activate a configuration on SIGHUP, before gunicorn replaces the workers; None where the old one stays, as the log says.

    An exception in gunicorn's hook would end the master, and every worker with it.
    """
    try:
        return activate()
    except ConfigError as error:
        for mistake in str(error).splitlines():
            _log.error("reload refused: %s", mistake, extra=fields("reload_refused", error=mistake))
    except Exception as bug:  # noqa: BLE001  # as above
        _log.error("reload refused: a bug", exc_info=without_message(bug), extra=fields("reload_refused"))
    _log.error("reload refused: the old configuration stays", extra=fields("reload_refused"))
    return None
