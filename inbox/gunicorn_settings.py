"""gunicorn's settings for the receiver, used by `gunicorn.conf.py` and `inbox serve`.

Override any of them on gunicorn's command line, or in GUNICORN_CMD_ARGS.

The master reads the configuration and creates the app; workers inherit it by fork. A worker that replaces a dead one
therefore serves the same configuration, even if the file has changed.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any

from inbox.config.model import Config
from inbox.db import guarantees, migrate
from inbox.db.dialect import SQLITE
from inbox.errors import ConfigError, collect_config_errors
from inbox.exposure import exposure_warnings
from inbox.gunicorn_worker import (
    WORKER_TMP_DIR,
    ActiveApp,
    HardenedWorker,
    LineLogger,
    allow_files,
    reload_app,
    start_app,
)
from inbox.loader.load import config_path, load_file, read_config
from inbox.observe.logs import AccessLogMask, Format, fields, without_message
from inbox.observe.recorder import ExporterProcess, exporter_at
from inbox.receiver.app import CAPACITY, Receiver, make_app, require_known_proxies

_log = logging.getLogger("gunicorn.error")  # gunicorn's logger, so that its settings apply


class Worker(HardenedWorker):
    """The receiver's worker."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # gunicorn's own
        super().__init__(*arguments, **options)
        logging.getLogger("uvicorn.access").addFilter(AccessLogMask(lambda: receiver.sources))


class ActiveReceiver(ActiveApp):
    """The receiver of the last valid configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.trusted_proxies: Sequence[str] = ()
        """Addresses and networks whose `X-Forwarded-For` is trusted; `*` means all."""
        self.exporter: ExporterProcess | None = None
        """Server of the workers' metrics; only the master has it."""

    def make(self, config: Config) -> Receiver:
        """Create the receiver of a configuration. Raises ConfigError."""
        parts: dict[str, Callable[[], Any]] = {}
        if self.config is not None:
            parts["same"] = partial(self.config.require_same, config, "database.url", "metrics.receiver")
        parts["app"] = partial(make_app, config)
        parts["proxies"] = partial(require_known_proxies, config, self.trusted_proxies)
        app: Receiver = collect_config_errors(parts)["app"]
        return app

    @property
    def sources(self) -> Container[str]:
        """Names of its sources."""
        return () if self.config is None else self.config.sources


receiver = ActiveReceiver()


def _activate() -> Config:
    file = load_file()
    return receiver.activate(file.make(receiver.make), file.config)


def _read_settings() -> tuple[int, Format]:
    """Return the number of workers, and the log format, which gunicorn needs before it calls `on_starting`.

    There is one worker per processor, and one in all on SQLite, where more would compete for the write lock.
    """
    try:
        config = read_config()
    except ConfigError:
        return 1, "text"  # on_starting reports the error
    if config.database.url.startswith(SQLITE):
        return 1, config.logs.format
    return int(os.environ.get("WEB_CONCURRENCY") or os.cpu_count() or 1), config.logs.format


wsgi_app = "inbox.gunicorn_settings:receiver"
bind = "127.0.0.1:8000"
workers, LineLogger.form = _read_settings()
worker_class = "inbox.gunicorn_settings.Worker"
logger_class = "inbox.gunicorn_worker.LineLogger"
keepalive = 30
timeout = 30
graceful_timeout = 15
backlog = 2048
control_socket_disable = True
worker_tmp_dir = WORKER_TMP_DIR


def _warn_of_exposures(config: Config) -> None:
    try:
        for exposure in exposure_warnings(config_path(), config):
            _log.warning("%s", exposure, extra=fields("exposed"))
    except Exception as bug:  # noqa: BLE001  # a failed warning must not stop the receiver
        _log.error(
            "bug in the search for files that others may read", exc_info=without_message(bug), extra=fields("bug")
        )


def on_starting(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Exit if the configuration or the schema is unusable; while the database is down, requests get 503."""
    receiver.trusted_proxies = tuple(server.cfg.forwarded_allow_ips)

    def prepare(config: Config) -> None:
        _warn_of_exposures(config)
        allow_files(CAPACITY.connections, "the receiver's connections")
        address = None if config.metrics.receiver is None else config.metrics.receiver.place
        receiver.exporter = exporter_at(address, config.logs.format, server.cfg.uid, server.cfg.gid)
        gc.freeze()  # here too: a collection writes to the memory that workers share

    start_app(
        server,
        _activate,
        application="inbox-receiver",
        checks=(migrate.require_current, guarantees.require),
        away="senders get 503",
        then=prepare,
    )


def on_reload(server: Any) -> None:  # noqa: ANN401  # gunicorn's
    """Reload the configuration on SIGHUP; the old one stays if the new one is unusable."""
    config = reload_app(server, _activate)
    if config is not None:
        _warn_of_exposures(config)
        _log.info("reloaded sources=%s", ",".join(config.sources) or "none", extra=fields("reloaded"))


def when_ready(_server: object) -> None:
    """Serve metrics, once gunicorn has its own port."""
    if receiver.exporter is not None:
        receiver.exporter.ensure()


def pre_fork(_server: object, _worker: object) -> None:
    """Restart a dead metrics server before a worker is forked."""
    if receiver.exporter is not None:
        receiver.exporter.ensure()


def on_exit(_server: object) -> None:
    """Stop the metrics server, after the workers have ended."""
    if receiver.exporter is not None:
        receiver.exporter.stop()
