"""The demo's workspace: its folder, its database, its `inbox.toml`, the environment of its processes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from inbox.db import engine, migrate
from inbox.db.dialect import SQLITE
from inbox.db.engine import reading
from relay.demo.processes import DemoError

_MARK = "# Written by `relay demo`."
_OVERRIDES = ("INBOX_DATABASE_URL", "GUNICORN_CMD_ARGS", "GUNICORN_FD")

_CONFIGURATION = """\
{mark} The receiver and the relay both read this file.

[database]
url = {database_url}

[web]
users = {users}

[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = [{token}] }}

[[sources.trivore.sweeps]]
api = "identity"
path = "/api/rest/v1/user"
entity_type = "USER"
grace = "0s"

[[sources.trivore.sweeps]]
api = "identity"
path = "/api/rest/v1/group"
entity_type = "GROUP"
grace = "0s"

[apis.identity]
base_url = {identity_url}
auth = {{ kind = "basic", user = "demo", password = "demo" }}
allow_http = true
allow_private = true

[destinations.commercial]
kind = "sync"
base_url = {commercial_url}
auth = {{ kind = "bearer", token = "demo" }}
timeout = "5s"
allow_http = true
allow_private = true

[routes.users-to-contacts]
source = "trivore"
when = {{ entity_type = ["USER"] }}
destination = "commercial"
ordering = "latest"
retry = {retry}
[routes.users-to-contacts.sync]
fetch  = {{ api = "identity", path = "/api/rest/v1/user/{{event.entity_id}}", tolerance = "0s" }}
find   = {{ path = "/contacts", params = {{ externalId = "{{event.entity_id}}" }}, pick = "items" }}
create = {{ path = "/contacts" }}
update = {{ path = "/contacts/{{target.id}}", format = "merge-patch" }}
delete = {{ path = "/contacts/{{target.id}}" }}
skip_unchanged = true
listing = {{ path = "/contacts", params = {{ offset = "{{start}}", limit = "{{count}}" }}, id = "external_id" }}
clear_when_absent = ["phone"]
[routes.users-to-contacts.sync.map]
external_id = "event.entity_id"
email       = "entity.emails[0].address"
first_name  = "entity.name.givenName"
last_name   = "entity.name.familyName"
phone       = "entity.mobiles[0].number"

[routes.groups-to-teams]
source = "trivore"
when = {{ entity_type = ["GROUP"] }}
destination = "commercial"
ordering = "latest"
retry = {retry}
[routes.groups-to-teams.sync]
fetch  = {{ api = "identity", path = "/api/rest/v1/group/{{event.entity_id}}", tolerance = "0s" }}
find   = {{ path = "/teams", params = {{ externalId = "{{event.entity_id}}" }}, pick = "items" }}
create = {{ path = "/teams" }}
update = {{ path = "/teams/{{target.id}}", format = "merge-patch" }}
delete = {{ path = "/teams/{{target.id}}" }}
skip_unchanged = true
listing = {{ path = "/teams", params = {{ offset = "{{start}}", limit = "{{count}}" }}, id = "external_id" }}
[routes.groups-to-teams.sync.map]
external_id = "event.entity_id"
name        = "entity.name"
"""

# Twelve repeats within half a minute: far more than a service needs that fails one call in ten.
_RETRY = '{ schedule = ["200ms", "500ms", "1s", "2s", "2s", "2s", "2s", "5s", "5s", "5s", "5s", "5s"] }'


class Folder:
    """The folder of a run. One that the demo made is removed at the end, with the token in it, unless `keep` is set."""

    def __init__(self, given: Path | None) -> None:
        """Make it. Raises DemoError when it can't be used."""
        self.path = prepare_folder(given)
        self.keep = given is not None

    def close(self) -> None:
        """Remove it, or leave it to the user."""
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def ending(self) -> str:
        """Say in words if it stays or is removed."""
        return (
            f"{self.path} stays; it holds the demo's token" if self.keep else f"{self.path} is removed, its token too"
        )


def prepare_folder(given: Path | None) -> Path:
    """Make the folder for everything: the given one, or a new temporary one. Raises DemoError when it can't be used."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="inbox-relay-demo-"))
    folder = given.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"can't make the folder {folder}: {error.strerror}; name another with --folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DemoError(f"can't write into the folder {folder}; name another with --folder")
    configuration = folder / "inbox.toml"
    if configuration.exists() and not configuration.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise DemoError(f"{configuration} is not the demo's, and stays as it is: name an empty folder with --folder")
    return folder


def absolute_url(url: str | None, folder: Path) -> str:
    """Return the database's URL, the same from every folder; `inbox.db` in `folder` unless one is given.

    Raises ConfigError when it is neither Postgres nor a SQLite file.
    """
    if url is None:
        return f"sqlite:///{folder / 'inbox.db'}"
    parsed = engine.parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        return f"sqlite:///{Path(parsed.database or '').absolute()}"
    return parsed.render_as_string(hide_password=False)


def prepare_database(url: str) -> Engine:
    """Connect to a database and bring it to this version's schema.

    Raises:
        DemoError: it is in use, by this product or another.
        ConfigError: as `inbox.db.engine.connect`.
    """
    made = engine.connect(url, application="relay-demo")
    with ExitStack() as unless_usable:
        unless_usable.callback(made.dispose)
        with made.connect() as connection, reading(connection).begin():
            tables = set(inspect(connection).get_table_names())
            used = "inbox" in tables and connection.execute(text("SELECT 1 FROM inbox LIMIT 1")).first() is not None
        where = made.url.set(query={}).render_as_string()
        if used:
            raise DemoError(
                f"{where} has events already, and the demo's changes would mix with them: name an empty database with "
                "--database, or leave out --folder and --database to get a new one"
            )
        if tables and "alembic_version" not in tables:
            raise DemoError(f"{where} belongs to something else: name an empty database with --database")
        migrate.upgrade(made)
        unless_usable.pop_all()
    return made


def configuration(**values: str) -> str:
    """Make the text of `inbox.toml` from `database_url`, `users`, `token`, `identity_url` and `commercial_url`."""
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return _CONFIGURATION.format(mark=_MARK, retry=_RETRY, **quoted)


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner may read, since it holds a token and perhaps a password."""
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")


def child_environment(configuration_path: Path, present: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return this process's environment for the receiver and the relay, without settings that would override the file."""
    kept = {name: value for name, value in present.items() if name not in _OVERRIDES}
    return {**kept, "INBOX_CONFIG": str(configuration_path), "WEB_CONCURRENCY": "2", "PYTHONUNBUFFERED": "1"}
