"""The filter language of the demo identity service's lists."""

from __future__ import annotations

import pytest

from relay.demo.scim_filter import InvalidFilterError, parse_filter

DOCUMENT = {
    "username": "aino",
    "age": 30,
    "locked": False,
    "nothing": None,
    "empty": "",
    "name": {"givenName": 'A "B"'},
    "emails": [{"address": "a@example.com"}, {"address": "b@example.org"}],
    "memberOf": ["g1", "g2"],
    "meta": {"lastModified": "2018-09-21T06:29:05.708Z"},
}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ('username eq "aino"', True),
        ('username EQ "Aino"', False),
        ('username ne "aino"', False),
        ('missing ne "x"', True),
        ('username co "in"', True),
        ('username sw "ai"', True),
        ('username ew "ai"', False),
        ("username pr", True),
        ("nothing pr", False),
        ("empty pr", False),
        ("locked pr", True),
        ("age gt 29", True),
        ("age lt 30", False),
        ('age gt "29"', False),
        ("age le 30.0", True),
        ("locked eq false", True),
        ("locked eq 0", False),
        ("nothing eq null", True),
        ("username ne null", True),
        ('name.givenName eq "A \\"B\\""', True),
        ('emails.address ew ".org"', True),
        ('emails.address eq "c@example.com"', False),
        ('memberOf eq "g2"', True),
        ('meta.lastModified gt "2018-09-21T06:29:05Z"', True),
        ('meta.lastModified le "2018-09-21T08:29:05.708+02:00"', True),
        ('username eq "x" and age pr or locked eq false', True),
        ('username eq "x" and (age pr or locked eq false)', False),
        ('(username eq "aino")  and  (emails.address co "@")', True),
    ],
)
def test_a_filter_says_what_it_means(text: str, passes: bool) -> None:
    assert parse_filter(text)(DOCUMENT) is passes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        ")",
        "a",
        "a eq",
        "a eq b",
        'a eq "',
        'a xx "b"',
        "a co 1",
        "a pr b",
        "(a pr",
        "a pr)",
        "a pr and",
        '"a" pr',
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidFilterError):
        parse_filter(text)
