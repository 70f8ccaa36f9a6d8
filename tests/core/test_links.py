"""A link to the next page is followed within its endpoint alone, whatever it says."""

from __future__ import annotations

import posixpath
import time
from contextlib import suppress
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.errors import UnusableAnswer
from relay.sync.paging import next_in_header, within

BASE = "https://api.example.com/v1?key=secret"
CURRENT = "https://api.example.com/v1/users?active=yes"

# --- the Link header


@pytest.mark.parametrize(
    ("header", "following"),
    [
        (None, None),
        ("", None),
        (", ,", None),
        ('<https://a/x?page=2>; rel="next"', "https://a/x?page=2"),
        ('<https://a/1>; rel="prev", <https://a/3>; rel="next"', "https://a/3"),
        ("</x>;rel=next", "/x"),
        ("<?a=1,2;3> ;\tREL = Next ,", "?a=1,2;3"),
        ('</x>; rel="last NEXT first"', "/x"),
        ('</x>; title="a, <b>; rel=\\"next\\""; rel="prev", </y>; rel="next"', "/y"),
        ("</x>; rel=prev; rel=next", None),
        ('</x>; rel="next"; anchor="/other"', None),
        ('</x>; anchor=""; rel="next"', None),
        ('</x>; rel="nextpage"', None),
        ("</x>; rel", None),
        ("</x>;; rel=next;", "/x"),
        ('<>; rel="next"', ""),
        ('</x>; rel="next", </x>; rel="next"', "/x"),
        ("</x>; title*=UTF-8''n%C3%A4chste; rel=next", "/x"),
    ],
)
def test_the_next_page_is_that_of_the_link_header(header: str | None, following: str | None) -> None:
    assert next_in_header(header) == following


@pytest.mark.parametrize(
    "header",
    [
        "https://a/x; rel=next", "</x; rel=next", '</x>; rel="next', "</x> rel=next", '</x>; rel=next "', "<</x>>; rel=next",
        '</x>; rel="next" </y>; rel="prev"', "next",
    ],
)  # fmt: skip
def test_a_header_that_can_not_be_read_is_not_the_last_page(header: str) -> None:
    with pytest.raises(UnusableAnswer, match="the Link header can't be read"):
        next_in_header(header)


@pytest.mark.parametrize(
    "part", ["</x>; rel=prev, ", "</x>" + ";" * 60, '</x>; a="' + "\\\\" * 60 + '", ', " " * 60, "," * 60, "; a=b", "<"]
)
def test_a_large_header_is_read_in_no_time(part: str) -> None:
    header = f"</x>; rel=prev{' ' if part.strip() else ''}" + part * (65_536 // len(part))
    began = time.process_time()
    with suppress(UnusableAnswer):
        next_in_header(header)
    assert time.process_time() - began < 1


# --- within the endpoint


@pytest.mark.parametrize(
    ("link", "path", "query"),
    [
        ("https://api.example.com/v1/users?page=2", "/users", "page=2"),
        ("https://api.example.com:443/v1/users?page=2#x", "/users", "page=2"),
        ("HTTPS://API.example.COM/v1/users?page=2", "/users", "page=2"),
        ("//api.example.com/v1/users?page=2", "/users", "page=2"),
        ("/v1/repositories/7/issues?page=2", "/repositories/7/issues", "page=2"),
        ("?page=2", "/users", "page=2"),
        ("groups", "/groups", ""),
        ("https://api.example.com/v1?page=2", "/", "page=2"),
        ("?key=secret&page=2", "/users", "page=2"),
        ("?page=a b\u00e4\r\nX: y", "/users", "page=a%20b%C3%A4X:%20y"),
        ("/v1/%C3%A4 b", "/%C3%A4%20b", ""),
    ],
)
def test_a_link_within_the_endpoint_is_followed(link: str, path: str, query: str) -> None:
    assert within(link, BASE, CURRENT) == (path, query)


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example/v1/users", "//evil.example/v1/users", "http://api.example.com/v1/users",
        "https://api.example.com:8443/v1/users", "https://api.example.com.evil.example/v1/users", "https://api.example.com./v1/users",
        "https://me@api.example.com/v1/users", "https://me:pw@api.example.com/v1/users", "https://api.example.com@evil.example/v1/users",
        "https://@api.example.com/v1/users", "https://evil.example\\@api.example.com/v1/users", "file:///v1/users", "file:///etc/passwd",
        "ftp://api.example.com/v1/users", "javascript:alert(1)", "data:text/plain,x",  "https://[::1]/v1/users",
        "https://%61pi.example.com/v1/users", "https://api\u3002example.com/v1/users", "https://\uff41pi.example.com/v1/users",
    ],
)  # fmt: skip
def test_a_link_to_another_origin_or_with_a_user_is_refused_with_a_remedy(link: str) -> None:
    with pytest.raises(
        UnusableAnswer, match=r"leads elsewhere: it must have the scheme, host and port of base_url.*base_url"
    ) as caught:
        within(link, BASE, CURRENT)
    assert "evil" not in str(caught.value), "nothing of the link is repeated"


@pytest.mark.parametrize(
    "link",
    ["/", "/v2/users", "/v1x/users", "/V1/users", "../users", "/v1/../admin", "/v1//evil.example/x", "/%76%31/users", "https://api.example.com"],
)  # fmt: skip
def test_a_link_beside_the_path_of_the_endpoint_is_refused_with_a_remedy(link: str) -> None:
    with pytest.raises(UnusableAnswer, match=r"its path is not below that of base_url; shorten the path.*base_url"):
        within(link, BASE, CURRENT)


@pytest.mark.parametrize(
    "link", ["/v1/%2e%2e/admin", "/v1/..;x/admin", "/v1/a\\..\\..\\admin", "/v1/%252e%252e/admin", "/v1/x%00y"]
)
def test_a_link_that_a_proxy_could_lead_elsewhere_is_refused(link: str) -> None:
    with pytest.raises(UnusableAnswer, match="could lead to another resource"):
        within(link, BASE, CURRENT)


def test_a_link_is_at_most_as_long_as_a_request_may_be() -> None:
    with pytest.raises(UnusableAnswer, match="more than 8192 characters"):
        within(f"?a={'x' * 8192}", BASE, CURRENT)


PIECES = [
    "https:", "http:", "//", "/", "\\", "..", ".", "%2e", "%2f", "v1", "users", "api.example.com", "evil.example", "@", ":",
    "443", "?", "#", "a=b", "&", " ", "\t", "\n", "\r", ";", "[", "]", "\u3002", "\uff0f", "\x00", "\ud800",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text())
@example("https://api.example.com/v1/users?page=2")
def test_whatever_a_link_says_the_request_is_one_line_below_the_endpoint(link: str) -> None:
    try:
        path, query = within(link, BASE, CURRENT)
    except UnusableAnswer:
        return
    assert path.startswith("/")
    assert not path.startswith("//")
    for text in (path, query):
        assert text.isascii()
        assert text.isprintable()
        assert not set(" #") & set(text)
    assert "?" not in path
    seen = f"/v1{path}"
    for _ in range(10):
        for read in (seen, seen.replace("\\", "/")):
            assert posixpath.normpath(read).startswith("/v1"), seen
        seen = unquote(seen)
