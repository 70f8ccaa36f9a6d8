"""The configuration of an installation: mistakes, secrets, certificates, and the files that hold them."""

from __future__ import annotations

import shlex
import stat
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from inbox import check
from inbox.config.values import Secret
from inbox.db.engine import parse_url
from inbox.errors import ConfigError, NotExamined
from inbox.examination import Examination, Finding, FindingKind, Installation
from inbox.exposure import exposures, literal_secrets, reaches_others, values_in

SOON = timedelta(days=30)
_MOST_MISTAKES = 5

MISTAKE = FindingKind(
    "configuration_mistake",
    "critical",
    "The configuration has a mistake.",
    "a program that starts now exits with 2, and one that runs keeps its old configuration at a reload",
    "inbox check",
)


def _configuration(installation: Installation) -> Iterator[Finding]:
    found = check.mistakes(installation.file, check.sides())
    for each in found[:_MOST_MISTAKES]:
        where = f"{each.file}:{each.line}" if each.line else each.file or str(installation.path)
        yield MISTAKE.found(each.key or where, f"{where}: {each.text}")
    if len(found) > _MOST_MISTAKES:
        yield MISTAKE.found(str(installation.path), f"and {len(found) - _MOST_MISTAKES} more mistakes")


IN_FILE = FindingKind(
    "secret_in_file",
    "warning",
    "A secret stands in inbox.toml itself.",
    "everybody who reads the file or a copy of it has the secret",
    'write "env:NAME" or "file:/path" in its place, then: kill -HUP PID',
)
SECRET_EXPIRED = FindingKind(
    "secret_expired",
    "critical",
    "No secret of a source is valid now.",
    "every webhook of the source gets 401",
    "inbox check # after adding a secret; then reload the receiver with SIGHUP",
)
SECRET_EXPIRING = FindingKind(
    "secret_expiring",
    "warning",
    "The last valid secret of a source expires within 30 days.",
    "from then on every webhook of the source gets 401",
    "inbox check # after adding a secret; then reload the receiver with SIGHUP",
)


def _secrets(installation: Installation) -> Iterator[Finding]:
    config, now = installation.config, installation.now
    for key in literal_secrets(config):
        yield IN_FILE.found(key, f"{key}: the secret stands in {installation.path}")
    urls = {"web.viewer_url": config.web.viewer_url}
    if config.database.password is None:
        urls["database.url"] = config.database.url
    for key, url in urls.items():
        if url is not None and url.is_literal and _has_password(url):
            yield IN_FILE.found(key, f"{key}: the password stands in {installation.path}")
    together: defaultdict[str, list[Secret]] = defaultdict(list)
    for key, value in values_in(config):
        if isinstance(value, Secret):
            together[key.partition("[")[0]].append(value)
    for key, secrets in together.items():
        ends = [each.not_after for each in secrets if each.valid_at(now)]
        lasting = [each for each in secrets if each.not_after is None or each.not_after > now + SOON]
        if not ends:
            yield SECRET_EXPIRED.found(key, f"{key}: none is valid now")
        elif not lasting:
            last = max(end for end in ends if end is not None)
            yield SECRET_EXPIRING.found(key, f"{key}: the last valid one expires at {last:%Y-%m-%d %H:%M}Z")


def _has_password(url: str) -> bool:
    try:
        return bool(parse_url(url).password)
    except ConfigError:
        return False


CERTIFICATE_EXPIRED = FindingKind(
    "certificate_expired",
    "critical",
    "A certificate in a file of the configuration has expired.",
    "calls that need it fail",
    "openssl x509 -noout -enddate -in {path}",
)
CERTIFICATE_EXPIRING = FindingKind(
    "certificate_expiring",
    "warning",
    "A certificate in a file of the configuration expires within 30 days.",
    "calls that need it fail from then on",
    "openssl x509 -noout -enddate -in {path}",
)
_LARGEST_FILE = 4_000_000


def _certificates(installation: Installation) -> Iterator[Finding]:
    unread = []
    for key, name in _certificate_files(installation):
        try:
            yield from _of_file(key, Path(name), installation.now)
        except (OSError, ValueError) as error:
            unread.append(f"{key} {name} ({error})")
    if unread:
        raise NotExamined(f"needs files with certificates in PEM: {'; '.join(unread)}")


def _certificate_files(installation: Installation) -> Iterator[tuple[str, str]]:
    for key, value in values_in(installation.config):
        if isinstance(value, str) and key.rpartition(".")[2] in {"ca_file", "cert_file"}:
            yield key, value
    try:
        query = parse_url(installation.config.database.url).query
    except ConfigError:
        return
    for name in ("sslrootcert", "sslcert"):
        value = query.get(name)
        if isinstance(value, str) and value != "system":
            yield f"database.url {name}", value


def _of_file(key: str, path: Path, now: datetime) -> Iterator[Finding]:
    """Yield the certificates of a file that have expired or soon will; of several authorities all but one may have.

    Raises:
        OSError, ValueError: the file can't be read, is very large, or has no certificate.
    """
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError("it is too large")
    ends = [(each.not_valid_after_utc, each) for each in x509.load_pem_x509_certificates(path.read_bytes())]
    is_of_authorities = key.rpartition(".")[2] in {"ca_file", "database.url sslrootcert"}
    end, certificate = max(ends, key=lambda one: one[0]) if is_of_authorities else ends[0]
    if end <= now + SOON:
        kind, verb = (CERTIFICATE_EXPIRED, "expired") if end <= now else (CERTIFICATE_EXPIRING, "expires")
        name = certificate.subject.rfc4514_string()
        told = f"{key}: the certificate of {name} in {path} {verb} at {end:%Y-%m-%d %H:%M}Z"
        yield kind.found(key, told, path=shlex.quote(str(path)))


EXPOSED = FindingKind(
    "exposed",
    "warning",
    "A file with secrets, webhooks or users is readable for every user, or a source accepts unsigned webhooks.",
    "others can read webhooks, forge them, or use the page",
    "chmod o= {path}",
)
WRITABLE = FindingKind(
    "writable_by_others",
    "critical",
    "Every user of this machine may write to inbox.toml, the SQLite file, or the users or tokens of the page.",
    "anybody can send webhooks elsewhere, change what is stored, or use the page",
    "chmod o= {path}",
)


def _files(installation: Installation) -> Iterator[Finding]:
    try:
        database = installation.sqlite_path
        for each in exposures(installation.path, installation.config):
            yield EXPOSED.found(each.subject, each.what, remedy=each.command or each.remedy.strip("; :"))
    except ConfigError as error:
        raise NotExamined(f"needs a database url that can be used: {error}") from None
    web = installation.config.web
    of_page = [Path(each.reference[5:]) for each in (web.users, web.tokens) if each and each.reference[:5] == "file:"]
    for path in filter(None, (installation.path, database, *of_page)):
        if reaches_others(path, stat.S_IWOTH):
            told = f"every user of this machine may write to {path}"
            yield WRITABLE.found(str(path), told, path=shlex.quote(str(path)))


EXAMINATIONS = tuple(
    Examination(name, looks_at, examine, kinds, needs_database=False)
    for name, looks_at, examine, kinds in (
        ("configuration", "Mistakes of inbox.toml, as both programs would find them.", _configuration, (MISTAKE,)),
        (
            "secrets",
            "Secrets that stand in the file, have expired or soon will.",
            _secrets,
            (IN_FILE, SECRET_EXPIRED, SECRET_EXPIRING),
        ),
        (
            "certificates",
            "Client certificates and authorities in files.",
            _certificates,
            (CERTIFICATE_EXPIRED, CERTIFICATE_EXPIRING),
        ),
        (
            "files",
            "Modes of inbox.toml, of the SQLite file and of the page's users and tokens, and sources without signatures.",
            _files,
            (EXPOSED, WRITABLE),
        ),
    )
)
