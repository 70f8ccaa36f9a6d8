"""The filter language by which tests read filters as a server does."""

from __future__ import annotations

import pytest

from tests.helpers.scim_filter import InvalidFilterError, parse_filter

DOCUMENT = {
    "username": "aino",
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
        ("username pr", True),
        ("nothing pr", False),
        ("empty pr", False),
        ("locked pr", True),
        ("locked eq false", True),
        ("locked eq 0", False),
        ('name.givenName eq "A \\"B\\""', True),
        ('emails.address eq "b@example.org"', True),
        ('emails.address eq "c@example.com"', False),
        ('memberOf eq "g2"', True),
        ('meta.lastModified ge "2018-09-21T06:29:05Z"', True),
        ('meta.lastModified ge "2018-09-21T08:29:05.708+02:00"', True),
        ('meta.lastModified ge "2018-09-21T08:29:05.709+02:00"', False),
        ('username ge "2018-09-21T06:29:05Z"', False),
        ('username eq "x" or locked eq false', True),
        ('username eq "x" and locked eq false', False),
        ('(username eq "x") or ((empty pr) or (locked eq false))', True),
        ('username eq "x) or (username pr"', False),
        ('(username eq "aino")  and  (memberOf pr)', True),
    ],
)
def test_a_filter_says_what_it_means(text: str, passes: bool) -> None:
    assert parse_filter(text)(DOCUMENT) is passes


@pytest.mark.parametrize(
    "text",
    [
        *("", "(", ")", "a", "a eq", "a eq b", 'a eq "', 'a co "b"', "a ge 1", 'a ge "b"'),
        *(
            "a pr b",
            "(a pr",
            "a pr)",
            "a pr and",
            "a pr and b pr or c pr",
            "a eq nul",
            "a eq null x",
            '"a" pr',
            "(" * 9000,
        ),
    ],
)
def test_what_is_no_filter_or_has_an_operator_that_is_not_offered_is_refused(text: str) -> None:
    with pytest.raises(InvalidFilterError):
        parse_filter(text)
