"""However hostile a value is, its form keeps it one value in a query, and one name in a path."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inbox.errors import ConfigError, MappingError
from relay.destinations.forward import MessageTemplate
from relay.sync.forms import FORMS
from relay.sync.templates import HeaderTemplate, Path, QueryTemplate, SearchTemplate, Template, leads_elsewhere
from tests.helpers.directory import parse_filter

KNOWN = ("event", "entity")
HOSTILE = st.text(st.sampled_from("\"'`\\/.%2eEfF5cC;?#&= ()*|<>{}\0\n\r\t\x7f\x85ab1é\u2028")) | st.text(
    st.characters(exclude_categories=["Cs"])
)
INJECTIONS = ['x" or userName eq "admin', "x' or 1 eq 1 or 'x", "x\\", '\\" or a pr or "', "*)(uid=*", "x`y", "\\'"]


def expand_template(text: str, value: object, template: type[Template] = Template) -> str:
    return template(text, "here", KNOWN).expand({"event": {"entity_id": value}})


# --- forms

UNWRITTEN: Mapping[str, Callable[[str], str]] = {
    "scim": json.loads,
    "json": json.loads,
    "odata": lambda text: re.fullmatch("'((?:[^']|'')*)'", text)[1].replace("''", "'"),  # type: ignore[index]
    "soql": lambda text: re.sub(
        r"\\(.)",
        lambda escaped: {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}.get(escaped[1], escaped[1]),
        re.fullmatch(r"'((?:[^'\\]|\\.)*)'", text)[1],  # type: ignore[index]
    ),
    "url": unquote,
    "path": unquote,
    "text": str,
}
"""Parser of each language for the output of its form."""


TIMES = {"epoch", "epoch-ms", "date"}


@pytest.mark.parametrize("form", [name for name in FORMS if name not in TIMES])
@given(HOSTILE)
@example('x" or userName eq "admin')
@example("x' or ''='")
@example("\\")
@example("*)(uid=*")
def test_a_form_is_read_back_as_the_value_it_was_given(form: str, value: str) -> None:
    left = value.translate(dict.fromkeys(map(ord, "\n\r\t\f"))) if form == "soql" else value
    if form in {"odata", "soql"} and re.search(r"[\x00-\x1f\x7f-\x9f]", left):
        with pytest.raises(MappingError, match="the value holds a control character"):
            expand_template(f"{{event.entity_id:{form}}}", value)
    elif form == "path" and {"", ".", ".."} & {*value.split("/")}:
        with pytest.raises(MappingError, match=r"the value has (an empty segment|a segment \. or \.\.)"):
            expand_template(f"{{event.entity_id:{form}}}", value)
    else:
        assert UNWRITTEN[form](expand_template(f"{{event.entity_id:{form}}}", value)) == value


@given(HOSTILE)
@example('x" or userName eq "admin')
def test_a_scim_filter_finds_the_searched_user_alone(value: str) -> None:
    passes = parse_filter(expand_template("externalId eq {event.entity_id:scim} and active eq true", value))
    assert passes({"externalId": value, "active": True})
    assert not passes({"externalId": value + "x", "userName": "admin", "active": True})
    assert not passes({"externalId": value, "active": False})


@pytest.mark.parametrize(
    ("form", "value", "written"),
    [
        ("scim", 5, '"5"'),
        ("scim", True, '"true"'),
        ("soql", "O'Neil\\\n", r"'O\'Neil\\\n'"),
        ("json", 5, "5"),
        ("json", [1, {"a": "b"}], '[1,{"a":"b"}]'),
        ("url", "a b/ä", "a%20b%2F%C3%A4"),
        ("epoch", "2026-01-31T12:00:00.9+02:00", "1769853600"),
        ("epoch-ms", "2026-01-31T10:00:00.9999Z", "1769853600999"),
        ("date", "2026-01-31T23:30:00-02:00", "2026-02-01"),
    ],
)
def test_a_form_writes(form: str, value: object, written: str) -> None:
    assert expand_template(f"{{ event.entity_id : {form} }}", value) == written


@pytest.mark.parametrize("form", sorted(TIMES))
@pytest.mark.parametrize("value", ["", "yesterday", "2026-01-31", ["2026-01-31T00:00:00Z"], 1769853600, float("inf")])
def test_a_value_that_is_no_time_is_written_as_none(form: str, value: object) -> None:
    with pytest.raises(MappingError, match=r"the value has to be|NaN"):
        expand_template(f"{{event.entity_id:{form}}}", value)


@pytest.mark.parametrize("form", [name for name in FORMS if name not in {"json", *TIMES}])
@pytest.mark.parametrize("value", [["a"], {"a": 1}])
def test_only_json_holds_more_than_a_single_value(form: str, value: object) -> None:
    with pytest.raises(MappingError, match=r"here: \{event.entity_id\}: the value is not a single value"):
        expand_template(f"{{event.entity_id:{form}}}", value)


@pytest.mark.parametrize(
    "text", ["{event.body[0:1]}", "{event.body[:1]}", "{event.entity_id || 'a:b'}", '{event.body."a:b"}']
)
def test_a_colon_within_an_expression_names_no_form(text: str) -> None:
    assert Template(text, "here", KNOWN).placeholders[0].form is None


# --- where a form is needed


@pytest.mark.parametrize(
    "text",
    [
        'a eq "{event.entity_id}"',
        "a eq {event.entity_id}",
        "{event.entity_id}*",
        "{event.event_type}{event.entity_id}",
        "{join('', [`\"a eq \"`, event.entity_id])}",
        'a eq {event.event_type:scim} or b eq "{event.entity_id}"',
    ],
)
def test_a_placeholder_beside_other_text_needs_a_form(text: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"here: \{.*\} in .*; valid forms: scim, odata, soql, json, epoch, epoch-ms, date, url, path, text$",
    ):
        Template(text, "here", KNOWN)


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.quote])
@pytest.mark.parametrize("text", ['a eq "{FORM}"', "a eq '{FORM}'", 'a eq "user {FORM}" or b', "'\"' '{FORM}'"])
def test_a_form_with_quotes_of_its_own_stands_between_no_others(form: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"gets its quotes from its form; remove the . around it"):
        Template(text.replace("{FORM}", f"{{event.entity_id:{form}}}"), "here", KNOWN)


PIECES = [*"\"'`{\\a", "{event.entity_id}", "{event.entity_id:FORM}", "{event.entity_id:text}", " eq ", ":x}"]
STRINGS = {
    "scim": re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL),
    "odata": re.compile("'(?:[^']|'')*'"),
    "soql": re.compile(r"'(?:[^'\\]|\\.)*'", re.DOTALL),
}
"""Quoting rules of each language."""


@pytest.mark.parametrize("form", STRINGS)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from(INJECTIONS) | HOSTILE)
@example("a eq {event.entity_id:FORM} and b eq 'x' or c eq {event.entity_id:FORM}", 'x" or userName eq "admin')
@example("'\"'{event.entity_id:FORM}\"'", 'x" or userName eq "admin')
@example("'a\\' b' {event.entity_id:FORM} '", "x' or 1 eq 1 or 'x")
def test_a_value_changes_nothing_of_a_template_but_its_own_place(form: str, text: str, value: str) -> None:
    try:
        template = Template(text.replace("FORM", form), "here", KNOWN)
    except ConfigError:
        return
    forms = [placeholder.form for placeholder in template.placeholders]
    assert None not in forms or text == "{event.entity_id}", "alone, or with a form"
    if FORMS["text"] not in forms and None not in forms:
        with suppress(MappingError):
            plain, hostile = (template.expand({"event": {"entity_id": each}}) for each in ("x", value))
            assert STRINGS[form].sub("S", hostile) == STRINGS[form].sub("S", plain)


@pytest.mark.parametrize("text", ["/Contacts('{event.seq}')", "/Contacts({event.seq})", "/x/{join('(', [event.seq])}"])
def test_a_query_in_a_path_needs_forms_too(text: str) -> None:
    with pytest.raises(ConfigError, match="valid forms"):
        Path(text, "here", KNOWN)


def test_a_key_of_odata_in_a_path_is_quoted_and_then_encoded() -> None:
    assert expand_template("/Contacts({event.entity_id:odata})", "O'N/x", Path) == "/Contacts(%27O%27%27N%2Fx%27)"


@pytest.mark.parametrize("text", ["/Contacts('{event.entity_id:path}')", "/Contacts({event.entity_id:path})"])
def test_a_query_in_a_path_takes_no_value_with_slashes(text: str) -> None:
    with pytest.raises(ConfigError, match="form path in a query; use the query's form"):
        Path(text, "here", KNOWN)


# --- paths

ELSEWHERE = [
    ".", "..", "a/../../../admin", "../admin", "a/..", "./a", "a/./b", r"..\admin", r"a\..\..\admin", "..;/admin",
    "a/..;x=1/b", "%2e%2e", "%2E%2e/admin", "%252e%252e%252fadmin", ".%2e/x", "a%2f..%2fb", "%25252e%25252e", "..%3b/x",
    "..?x", "..#x", ".. /x", "%5c..%5cadmin", "..%00", "a\0b", "a\r\nb", "a\x7fb", "a\x85b", "a%0d%0ab", "%2500", "%c2%85",
    "\uff0e\uff0e", "\u2025", "a\uff0f..", "..\uff3cadmin", "a/\uff0e./b", "\uff05\uff12\uff45.", "%ef%bc%8e.", "..\uff1bx",
    "..\u2044admin", "a\u2215..", "..\u2216admin",
]  # fmt: skip


# Proxies make one slash of two, and servers take no notice of one at the end.
COLLECTION_OR_ANOTHER = [
    "",
    "/",
    "\\",
    " ",
    "admin/",
    "/admin",
    "admin\\",
    "%2fadmin",
    "admin%2f",
    ";x",
    "a/;x",
    "?x",
    "#",
]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        *((value, r".* (has a segment \. or \.\.|has a control character|begins or ends)") for value in ELSEWHERE),
        *((value, r"\{event\.entity_id\} is empty, or begins or ends with") for value in COLLECTION_OR_ANOTHER),
    ],
)
def test_a_value_that_could_be_taken_for_another_path_is_refused(value: str, why: str) -> None:
    with pytest.raises(MappingError, match=f"^here: {why}"):
        expand_template("/user/{event.entity_id}", value, Path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a/b", "a%2Fb"),
        ("a//b", "a%2F%2Fb"),
        ("DOMAIN\\user", "DOMAIN%5Cuser"),
        ("a..b", "a..b"),
        ("...", "..."),
        (".well-known", ".well-known"),
        ("50%", "50%25"),
        ("50%25", "50%2525"),
        ("a;b?c#d", "a%3Bb%3Fc%23d"),
        ("ä b", "%C3%A4%20b"),
        ("a\u2026\uff0fb", "a%E2%80%A6%EF%BC%8Fb"),
    ],
)
def test_any_other_id_can_stand_in_a_path(value: str, text: str) -> None:
    assert expand_template("/user/{event.entity_id}/profile", value, Path) == f"/user/{text}/profile"


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/{event.source}{event.action}/x", {"source": ".", "action": "."}),
        ("/.{event.source}/x", {"source": "."}),
        ("/{event.source}./x", {"source": "."}),
        ("/{event.source}2e/x", {"source": ".%"}),
        ("/{event.source}{event.action}", {"source": "%2", "action": "e"}),
    ],
)
def test_the_whole_path_counts_and_not_each_value(path: str, scope: Mapping[str, str]) -> None:
    with pytest.raises(MappingError, match=r"has a segment \. or \.\."):
        Path(path, "here", KNOWN).expand({"event": scope})


@pytest.mark.parametrize(
    "path", ["/a/../b", "/a/./{event.entity_id}", "/%2e%2e/{event.entity_id}", "/a/..;/b", "/a%00", "/..\\a"]
)
def test_a_path_of_the_configuration_leads_nowhere_else_either(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: .* has a (segment|control character).*; write the intended path$"):
        Path(path, "here", KNOWN)


def test_a_value_that_is_encoded_again_and_again_is_refused_after_a_few_looks() -> None:
    """Each look is linear; until nothing changes any more, they would be as many as the value is long."""
    with pytest.raises(MappingError, match="percent-encoded more than 8 times"):
        expand_template("/user/{event.entity_id}", "%" + "25" * 500, Path)


@pytest.mark.parametrize("kind", [Path, QueryTemplate, HeaderTemplate, SearchTemplate, MessageTemplate])
def test_a_value_that_is_too_long_for_its_place_is_refused_before_it_is_looked_at(kind: type[Template]) -> None:
    assert kind.longest is not None
    text = "/{event.entity_id:json}" if kind is Path else "{event.entity_id:json}"
    for value in ("x" * (kind.longest + 1), ["x" * kind.longest]):
        with pytest.raises(MappingError, match=f"characters; at most {kind.longest} are"):
            expand_template(text, value, kind)


def test_a_run_of_marks_is_looked_at_in_a_time_that_grows_with_its_length() -> None:
    """Python sorts a run of marks in quadratic time while it normalises, and lets no other thread run: here for an hour."""
    assert leads_elsewhere("/" + "\u0301" * 1_500_000 + "\u0316" * 1_500_000) is None
    assert leads_elsewhere("/a/\u2024\u0301/") is None
    assert leads_elsewhere("/a/\u2024\uff0e/b\u0301") == "has a segment . or .."


REPOSITORY = "/repos/{event.entity_id:path}/issues/7"


@pytest.mark.parametrize(
    "value",
    ["../admin", "%252e%252e", "", "//", "/", "a//b", "/a/b", "a/b/", "a/;x/b", "a/ /b", "a/%2f/b", "a\\\\b", "a/?/b"],
)
def test_a_value_with_slashes_has_no_empty_segment_and_leads_nowhere_else(value: str) -> None:
    with pytest.raises(MappingError, match=r"^here: (\{event\.entity_id\}|'/repos/)"):
        expand_template(REPOSITORY, value, Path)


@pytest.mark.parametrize("template", ["/user/{event.entity_id}/profile", REPOSITORY])
@given(HOSTILE)
@example("a/../../../admin")
@example("%252e%252e%255cadmin")
@example("a/%2e%2e/b")
@example("a/..;x/b")
def test_no_value_leads_out_of_its_path_however_often_it_is_decoded(template: str, value: str) -> None:
    try:
        path = expand_template(template, value, Path)
    except MappingError:
        return
    assert path.count("/") == template.count("/") + (value.count("/") if template == REPOSITORY else 0)
    assert path.isascii()
    assert path.isprintable()
    assert not set("?# \\") & set(path)
    for _ in range(10):
        for seen in (path, re.sub(";[^/]*", "", path.replace("\\", "/"))):
            assert posixpath.normpath(seen.replace("//", "/x/")).startswith(template[:5]), path
            assert not {".", ".."} & set(seen.split("/"))
        path = unquote(path)
