"""Links to the next page: reads the `Link` header (RFC 8288), and keeps a link within its endpoint. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, urljoin, urlsplit

from inbox.errors import UnusableAnswer
from relay.sync.templates import leads_elsewhere

LONGEST = 8192
"""Characters of a link."""
_PATH_SAFE = "%/:@!$&'()*+,;=~-._"
_QUERY_SAFE = "%!$&'()*+,;=:@/?-._~"
_PORTS = {"http": 80, "https": 443}

_TARGET = re.compile(r"[\s,]*<([^<>]*)>")
_PARAM = re.compile(r"""\s*;\s*(?:([!#$%&'*+.^_`|~\w-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s";,]*)))?)?""", re.ASCII)
"""A parameter of RFC 8288 §3: a token, and as its value a quoted string or a token."""
_END = re.compile(r"\s*(?:,|\Z)")
_BLANK = re.compile(r"[\s,]*\Z")


def next_in_header(header: str | None) -> str | None:
    """Return the URL of `rel="next"` in a `Link` header; None without one.

    Raises:
        UnusableAnswer: the header can't be read, or names several next pages. Its end would be mistaken for the last page.
    """
    found = {target for target, relations in _links(header or "") if "next" in relations}
    if len(found) > 1:
        raise UnusableAnswer("the Link header names several next pages")
    return next(iter(found), None)


def _links(header: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the target and the relations of each link."""
    at = 0
    while _BLANK.match(header, at) is None:
        target = _TARGET.match(header, at)
        if target is None:
            raise UnusableAnswer("the Link header can't be read")
        at, relations, is_of_page = target.end(), None, True
        while parameter := _PARAM.match(header, at):
            at = parameter.end()
            name = (parameter[1] or "").lower()
            if name == "rel" and relations is None:  # the first counts (§3.3)
                quoted = parameter[2]
                value = (parameter[3] or "") if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                relations = value.lower().split()
            is_of_page = is_of_page and name != "anchor"  # a link of another resource (§3.2)
        end = _END.match(header, at)
        if end is None:
            raise UnusableAnswer("the Link header can't be read")
        at = end.end()
        if is_of_page:
            yield target[1], relations or []


def within(link: str, base: str, current: str) -> tuple[str, str]:
    """Return the path and the query of a link, for a call below `base`. A relative link is one from the URL `current`.

    The call has the endpoint's secrets, so a link to another origin, or beside the path of `base`, is never followed. The
    query of `base` comes with every call, so it is left out.

    Raises:
        UnusableAnswer: the link can't be read, or leads elsewhere. The text has a remedy, and nothing of the link.
    """
    home = urlsplit(base)
    try:
        parts = urlsplit(urljoin(current, _bounded(link)))
        origin = (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
        is_plain = parts.username is None and parts.password is None
    except ValueError:
        raise UnusableAnswer("the link to the next page can't be read") from None
    if not is_plain or origin != (home.scheme, home.hostname, home.port or _PORTS.get(home.scheme)):
        raise UnusableAnswer(
            "the link to the next page leads elsewhere: it must have the scheme, host and port of base_url, and no user; "
            "correct base_url, or set query_only = true to take only the query of links"
        )
    path, prefix = quote(parts.path, safe=_PATH_SAFE), home.path.rstrip("/")
    below = path.removeprefix(prefix) or "/"
    if not path.startswith(prefix) or not below.startswith("/") or below.startswith("//"):
        raise UnusableAnswer(
            "the link to the next page leads elsewhere: its path is not below that of base_url; "
            "shorten the path of base_url, or set query_only = true to take only the query of links"
        )
    if leads_elsewhere(path):
        raise UnusableAnswer("the link to the next page has a path that could lead to another resource")
    return below, _query(parts.query, home.query)


def query_of(link: str, base: str) -> str:
    """Return the query of a link alone, whatever else the link has.

    Raises:
        UnusableAnswer: the link can't be read, or has no query, so it would lead to the first page.
    """
    try:
        query = urlsplit(_bounded(link)).query
    except ValueError:
        raise UnusableAnswer("the link to the next page can't be read") from None
    if not query:
        raise UnusableAnswer("the link to the next page has no query, and only its query is taken (query_only)")
    return _query(query, urlsplit(base).query)


def _query(query: str, known: str) -> str:
    pairs = [pair for pair in quote(query, safe=_QUERY_SAFE).split("&") if pair and pair not in known.split("&")]
    return "&".join(pairs)


def _bounded(link: str) -> str:
    if len(link) > LONGEST:
        raise UnusableAnswer(f"the link to the next page has more than {LONGEST} characters")
    try:
        link.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise UnusableAnswer("the link to the next page can't be read") from None
    return link
