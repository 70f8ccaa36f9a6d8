"""Endpoints of HTTP clients, read from the configuration and checked once before any call."""

from __future__ import annotations

import ipaddress
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec
import requests

from inbox.config.model import ApiBasic, ApiBearer, ApiHeader, Endpoint, Outbound, OutboundAuth
from inbox.config.values import is_name, may_be_set, to_title_case
from inbox.errors import ConfigError, collect_config_errors
from relay.http import guard
from relay.http.connection import make_tls_context
from relay.http.response import Redactor

_PRINTABLE = re.compile(r"[\t\x20-\x7e]*")
_LEFT_AS_THEY_ARE = "\t" + "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_HOST = re.compile(r"[a-z0-9._-]+")
_NO_LISTS = Outbound()


class Target(msgspec.Struct, frozen=True):
    """A checked endpoint."""

    base: str
    """Scheme, host and path, as configured. A call's path is appended."""
    query: str
    shown: str
    """The part of `base` that the log shows."""
    headers: dict[str, str]
    """Configured headers and authentication, with names in Title-Case so that they replace a call's headers."""
    timeout: float
    """Seconds for a call."""
    proxy: str | None
    rules: guard.AddressRules
    tls: ssl.SSLContext
    redactor: Redactor


def prepare(
    endpoint: Endpoint,
    url: str,
    where: str,
    outbound: Outbound = _NO_LISTS,
    *,
    key: str = "url",
    secrets: Iterable[str] = (),
    shown_path: str | None = None,
) -> Target:
    """Read the endpoint's secrets, and check everything that can be checked before a call.

    Args:
        endpoint: its authentication, limits and rules.
        url: the URL that prefixes every path.
        where: the table of the configuration, named in errors.
        outbound: the address lists for all endpoints.
        key: the key of the url in that table, named in errors.
        secrets: further texts to mask in excerpts of responses.
        shown_path: text to log in place of the URL's path, which may be a secret.

    Raises:
        ConfigError: the URL, a header, `ca_file` or `proxy` is unusable, or a secret is missing. The text has a line for
            each mistake.
    """
    rules = _rules(endpoint, outbound)
    checks: dict[str, Callable[[], Any]] = {
        "parts": partial(_check_url, url, endpoint, rules, f"{where}.{key}"),
        "auth": partial(_authentication, endpoint.auth, f"{where}.auth"),
        "headers": partial(_own_headers, endpoint, where),
        "proxy": partial(_check_proxy, endpoint.proxy, f"{where}.proxy"),
        "tls": partial(make_tls_context, endpoint.ca_file, where, endpoint.cert_file, endpoint.key_file),
    }
    made = collect_config_errors(checks)
    parts: SplitResult = made["parts"]
    headers, own = made["auth"]
    return Target(
        base=f"{parts.scheme}://{parts.netloc}{parts.path}",
        query=parts.query,
        shown=f"{parts.scheme}://{parts.netloc}{parts.path if shown_path is None else shown_path}",
        headers={"User-Agent": "inbox-relay", "Accept-Encoding": "identity", **made["headers"], **headers},
        timeout=float(endpoint.timeout),
        proxy=endpoint.proxy,
        # The operator chose the proxy's address, and the proxy resolves the name itself.
        rules=guard.ANYWHERE if endpoint.proxy else rules,
        tls=made["tls"],
        redactor=Redactor([*own, *secrets, *_query_values(parts.query), *_password(endpoint.proxy)]),
    )


def header_value(text: str) -> str:
    """Encode `text` for a header: printable ASCII and tabs unchanged, any other text percent-encoded as UTF-8.

    `requests` refuses line breaks, but would send a NUL or Latin-1. Encoded text has its `%` encoded too.
    """
    return text if _PRINTABLE.fullmatch(text) else quote(text, safe=_LEFT_AS_THEY_ARE)


def _own_headers(endpoint: Endpoint, where: str) -> dict[str, str]:
    """Return the configured headers. If a name has two spellings, the first one counts."""
    headers: dict[str, str] = {}
    for name, value in endpoint.headers.items():
        if not may_be_set(name):
            raise ConfigError(f"{where}.headers: the header {name!r} can't be set here")
        headers.setdefault(to_title_case(name), header_value(value))
    return headers


def _check_url(url: str, endpoint: Endpoint, rules: guard.AddressRules, where: str) -> SplitResult:
    """Return the URL as normalised by requests (IDNA, percent-encoding). Errors omit it, since it may be a secret."""
    request = requests.PreparedRequest()
    try:
        request.prepare_url(url, None)
        parts = urlsplit(request.url or "")
        parts.port  # noqa: B018  # raises if it is not a number
    except (requests.RequestException, ValueError):
        raise ConfigError(f"{where}: is not a valid URL; write it as https://host/path") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{where}: must begin with https:// or http:// and have a host")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f'{where}: must not contain a user or password; write them as auth = {{ kind = "basic", … }}')
    wrong = []
    if parts.scheme == "http" and not endpoint.allow_http:
        wrong.append(f"{where}: is plain http; use https, or set allow_http = true")
    if problem := _host_problem(parts.hostname, endpoint, rules):
        wrong.append(f"{where}: {problem}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return parts


def _host_problem(host: str, endpoint: Endpoint, rules: guard.AddressRules) -> str | None:
    """Return the reason why calls to the host would be refused, judging by its text alone; None without a reason."""
    if endpoint.proxy is not None:
        return _problem_behind_proxy(host, endpoint, rules)
    if guard.is_loopback_name(host):
        return None if endpoint.allow_private else f"{host} is this machine; allow_private = true allows the call"
    # Each call checks the lists; this check only finds a missing allow_private.
    return _find_address_problem(host, guard.AddressRules(allow_private=endpoint.allow_private))


def _find_address_problem(host: str, rules: guard.AddressRules) -> str | None:
    address = guard.parse_literal(host)
    reason = None if address is None else guard.find_refusal(address, rules)
    spelled = "" if guard.is_canonical(host) else f"{address}, which is "
    return None if reason is None else f"{host} is {spelled}{reason}"


def _authentication(auth: OutboundAuth | None, where: str) -> tuple[dict[str, str], list[str]]:
    """Return the headers, and the secrets in them."""
    if isinstance(auth, ApiBasic):
        made = collect_config_errors(
            {name: partial(getattr(auth, name).reveal, at=f"{where}.{name}") for name in ("user", "password")}
        )
        user, password = made["user"], made["password"]
        both = b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {both}"}, [password, both]
    if isinstance(auth, ApiBearer):
        token = auth.token.reveal(at=f"{where}.token")
        return {"Authorization": header_value(f"Bearer {token}")}, [token, header_value(token)]
    if isinstance(auth, ApiHeader):
        if not is_name(auth.name):
            raise ConfigError(f"{where}.name: {auth.name!r} is not a header name")
        value = auth.value.reveal(at=f"{where}.value")
        return {to_title_case(auth.name): header_value(value)}, [value, header_value(value)]
    return {}, []


def _check_proxy(proxy: str | None, where: str) -> None:
    if proxy is None:
        return
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its text may show the password
        usable = False
    if not usable:
        raise ConfigError(f"{where}: must be an http:// or https:// url")


def _rules(endpoint: Endpoint, outbound: Outbound) -> guard.AddressRules:
    given = [lists.allow_to for lists in (outbound, endpoint) if lists.allow_to is not None]
    return guard.AddressRules(
        allow_private=endpoint.allow_private,
        allow=tuple(tuple(map(ipaddress.ip_network, networks)) for networks in given),
        block=tuple(map(ipaddress.ip_network, (*outbound.block_to, *endpoint.block_to))),
    )


def _problem_behind_proxy(host: str, endpoint: Endpoint, rules: guard.AddressRules) -> str | None:
    """Refuse a recognisably private host: a proxy resolves names itself, and may accept more spellings of addresses."""
    address = guard.parse_literal(host)
    if address is not None:
        problem = _find_address_problem(host, rules)
        if problem is None and not guard.is_canonical(host) and not rules.forbids_nothing:
            # some proxies read 010.0.0.1 as 8.0.0.1, others as 10.0.0.1
            problem = f"proxies read {host} differently; write the address as {address}"
        return problem
    if endpoint.allow_to is not None or endpoint.block_to:
        return (
            f"the proxy resolves {host} itself, so allow_to and block_to can't be enforced; "
            "remove them here, and configure these lists in the proxy"
        )
    if not endpoint.allow_private and (_HOST.fullmatch(host) is None or guard.is_private_name(host)):
        return f"{host} is not a public name; set allow_private = true to call it through a proxy"
    if not endpoint.allow_private and host.endswith("."):
        return f"{host} ends with a dot, which proxies interpret differently; remove the dot"
    return None


def _query_values(query: str) -> list[str]:
    return [unquote(pair.partition("=")[2] or pair) for pair in query.split("&") if pair]


def _password(proxy: str | None) -> list[str]:
    password = urlsplit(proxy).password if proxy else None
    return [unquote(password)] if password else []
