"""gunicorn's settings for the receiver; `gunicorn.conf.py` and `inbox serve` take them from here.

Each can be overridden on gunicorn's command line, or by GUNICORN_CMD_ARGS.

The master reads the configuration and makes the app; the workers inherit it by fork. So a worker that replaces a dead
one serves the same configuration, whatever the file says by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from gunicorn import glogging
from sqlalchemy.exc import OperationalError
from uvicorn_worker import UvicornWorker

from inbox.config.model import Config
from inbox.db import engine, guarantees, migrate
from inbox.db.dialect import SQLITE
from inbox.db.trouble import trouble_text
from inbox.errors import ConfigError, collect_config_errors
from inbox.exposure import exposure_warnings
from inbox.http.protocol import HardenedHttpProtocol
from inbox.loader.load import ConfigFile, config_path, load_file, read_config
from inbox.logs.access_log import AccessLogMask
from inbox.logs.lines import LineFormatter, escape_lines, write_stderr
from inbox.logs.traces import without_message
from inbox.receiver.app import Receiver, app_of
from inbox.receiver.proxies import require_known_proxies
from inbox.telemetry.recorder import ExporterProcess, exporter_at

_log = logging.getLogger("gunicorn.error")  # gunicorn's own: it goes where gunicorn's settings send it


class Worker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker ships no types
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
        logging.getLogger("uvicorn.access").addFilter(AccessLogMask(lambda: receiver.sources))

    def init_process(self) -> None:
        """Run in the new process, before it serves."""
        _return_large_blocks()
        super().init_process()

    def init_signals(self) -> None:
        """Leave SIGHUP to the master: a worker that gets it too, as from `pkill -HUP gunicorn`, would die of it."""
        super().init_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 1024 * 1024


def _return_large_blocks() -> None:
    """Return the memory of large bodies to the system once it is freed.

    glibc does so by itself until the first is freed; then it keeps blocks of that size, in each thread (mallopt(3),
    M_MMAP_THRESHOLD). Other systems have no such function, and no such habit.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


class ActiveApp:
    """The app of the last good configuration. The master changes it; a worker keeps what it was forked with."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._app: Receiver | None = None
        self.trusted_proxies: Sequence[str] = ()
        """Addresses and networks whose `X-Forwarded-For` counts; `*` is all of them."""
        self.exporter: ExporterProcess | None = None
        """Serves the workers' metrics; only the master has it."""

    def activate(self, file: ConfigFile) -> Config:
        """Activate a configuration, for workers that are forked from now on.

        Raises:
            ConfigError: it can't be used, and the one before stays. The text has a line for each mistake.
        """
        config, mistakes = file.sound, []
        if self._config is not None and config.metrics.receiver != self._config.metrics.receiver:
            mistakes.append("[metrics] receiver: another address needs a restart")
        if self._config is not None and config.database.url != self._config.database.url:
            # Its schema is checked and the number of workers is chosen at the start; and an event in a
            # database that no relay reads is never delivered.
            mistakes.append(f"{config.database.url.origin}: another database or password needs a restart")
        mistakes = [str(file.source.locate_line(mistake)) for mistake in mistakes]
        try:
            app = file.make(self._make)
        except ConfigError as error:
            mistakes.append(str(error))
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        self._config, self._app = config, app
        return config

    def _make(self, config: Config) -> Receiver:
        parts: dict[str, Callable[[], Any]] = {
            "app": lambda: app_of(config),
            "proxies": lambda: require_known_proxies(config, self.trusted_proxies),
        }
        app: Receiver = collect_config_errors(parts)["app"]
        return app

    @property
    def sources(self) -> Container[str]:
        """The names of its sources."""
        return () if self._config is None else self._config.sources

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's, handed through
        """The ASGI application."""
        if self._app is None:
            raise RuntimeError(
                "gunicorn's settings have to run inbox.gunicorn_settings.on_starting, which reads the configuration"
            )
        await self._app(scope, receive, send)


receiver = ActiveApp()


def _workers() -> int:
    """Return the number of processors; 1 on SQLite, where two workers only compete for the write lock."""
    try:
        url = read_config().database.url
    except ConfigError:
        return 1  # on_starting says what is wrong
    if url.startswith(SQLITE):
        return 1
    return int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count() or 1)


wsgi_app = "inbox.gunicorn_settings:receiver"
bind = "127.0.0.1:8000"
workers = _workers()
worker_class = "inbox.gunicorn_settings.Worker"
logger_class = "inbox.gunicorn_settings.LineLogger"
keepalive = 30
timeout = 30
graceful_timeout = 15
backlog = 2048
control_socket_disable = True
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # the heartbeat must not wait for a full disk


FILES_BESIDES = 100
"""Files that a worker opens besides its connections."""


def _allow_files(connections: int) -> None:
    """Raise the limit of open files to the limit of connections; most systems allow that on request."""
    least = connections + FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < least:
        most = least if hard == resource.RLIM_INFINITY else min(hard, least)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < least:
            told = f"inbox: a process may open {most} files here, too few for [receiver] connections = {connections}"
            write_stderr(told)


def _escape_logs(log: glogging.Logger) -> None:
    """Let nothing from outside break or forge a line of the log, and give all lines one form of time."""
    escape_lines([*log.error_log.handlers, *log.access_log.handlers], glogging.Logger.datefmt)
    if logging.lastResort is not None:  # for our loggers, which gunicorn does not know
        logging.lastResort.setFormatter(LineFormatter(glogging.Logger.error_fmt))


class LineLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's logger with lines like ours, from its first one on."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401  # gunicorn's
        """Make the handlers, at the start and at each reload."""
        super().setup(cfg)
        _escape_logs(self)


def _warn_of_exposures(config: Config) -> None:
    try:
        for exposure in exposure_warnings(config_path(), config):
            _log.warning("%s", exposure)
    except Exception as bug:  # noqa: BLE001  # a warning that can't be given stops no receiver
        _log.error("bug in the look for files that others may read", exc_info=without_message(bug))


def on_starting(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Exit if the configuration or the schema can't work; while the database is down, requests get 503."""
    _escape_logs(server.log)  # an operator's own logger_class may have made them
    try:
        receiver.trusted_proxies = tuple(server.cfg.forwarded_allow_ips)
        config = receiver.activate(load_file())
        checked = engine.connect(config.database.url, application="inbox-receiver")
        try:
            migrate.require_current(checked)
            guarantees.require(checked)
        except OperationalError as error:
            _log.warning("the database does not answer, senders get 503 until it does: %s", trouble_text(error))
        finally:
            checked.dispose()
        _warn_of_exposures(config)
        _allow_files(config.receiver.connections)
        receiver.exporter = exporter_at(config.metrics.receiver, server.cfg.uid, server.cfg.gid)
    except ConfigError as error:
        for mistake in str(error).splitlines():
            write_stderr(f"inbox: {mistake}")
        sys.exit(2)


def on_reload(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Read the configuration again on SIGHUP, before gunicorn replaces the workers; keep the old one if it can't be used.

    An exception here would end the master, and every worker with it.
    """
    _escape_logs(server.log)
    try:
        config = receiver.activate(load_file())
    except ConfigError as error:
        for mistake in str(error).splitlines():
            _log.error("reload refused: %s", mistake)
        _log.error("reload refused: the old configuration stays")
    except Exception as bug:  # noqa: BLE001  # as above
        _log.error("reload refused: a bug", exc_info=without_message(bug))
        _log.error("reload refused: the old configuration stays")
    else:
        _warn_of_exposures(config)
        _log.info("reloaded sources=%s", ",".join(config.sources) or "none")


def when_ready(_server: object) -> None:
    """Serve metrics, when gunicorn has its own port."""
    if receiver.exporter is not None:
        receiver.exporter.ensure()


def pre_fork(_server: object, _worker: object) -> None:
    """Restart the metrics server if it has died, before a worker is forked."""
    if receiver.exporter is not None:
        receiver.exporter.ensure()


def on_exit(_server: object) -> None:
    """Stop the metrics server, after the workers have ended."""
    if receiver.exporter is not None:
        receiver.exporter.stop()
