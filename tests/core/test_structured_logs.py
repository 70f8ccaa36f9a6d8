"""Lines in JSON: one line each, with the documented keys, whatever stands in the values."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from typing import Any

from inbox.observe.logs import (
    KEYS,
    TraceIds,
    escape_lines,
    fields,
    working_on,
)
from tests.docs.pages import PAGES, ROOT
from tests.helpers.hostile import HOSTILE, MARK, harm_of

IDS, OTHER = TraceIds("a" * 32, "b" * 16), TraceIds("c" * 32, "d" * 16)


def logged(*values: object, extra: dict[str, Any] | None = None, raising: bool = False) -> str:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    escape_lines([handler], form="json")
    log = logging.Logger("relay")  # noqa: LOG001  # one that nothing else has
    log.addHandler(handler)
    bug = (RuntimeError, RuntimeError(HOSTILE), None) if raising else None
    log.warning("refused %s" if values else "refused", *values, extra=extra, exc_info=bug)
    return output.getvalue()


def test_no_value_breaks_a_line_and_none_is_lost() -> None:
    nasty = HOSTILE + '"\x1b[31m\\ \ud800 a=b\u2028'
    line = logged(nasty, extra=fields("dead", lane=nasty, seq=7, error=nasty), raising=True)
    assert (line.count("\n"), line[-1]) == (1, "\n")
    assert line.isprintable() or line.rstrip("\n").isprintable()
    assert harm_of(line) == []
    found = json.loads(line)
    assert found["lane"] == found["error"] == nasty
    assert found["message"] == f"refused {nasty}"
    assert MARK in found["traceback"]
    assert str(found["seq"]) == "7"


def test_a_line_has_the_span_it_is_given_or_the_one_at_work() -> None:
    with working_on(IDS):
        at_work, given = json.loads(logged()), json.loads(logged(extra=fields("dead", OTHER)))
    assert (at_work["trace_id"], at_work["span_id"]) == (IDS.trace_id, IDS.span_id)
    assert (given["trace_id"], given["span_id"]) == (OTHER.trace_id, OTHER.span_id)
    assert "trace_id" not in json.loads(logged())


def test_every_key_is_documented_and_every_documented_key_is_one() -> None:
    always = {"time", "level", "logger", "process", "event", "message", "trace_id", "span_id", "traceback"}
    calls = [
        node
        for folder in ("inbox", "relay")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    named = {getattr(call.func, "attr", getattr(call.func, "id", "")): set[str]() for call in calls}
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        named[name] |= {each.arg for each in call.keywords if each.arg} - {"ids"}
    assert named["fields"] <= KEYS.keys()
    assert KEYS.keys() <= always | named["fields"] | named["tell"] | named["told"] | named["partial"]
    rows = "\n".join(f"| `{key}` | {meaning} |" for key, meaning in KEYS.items())
    assert f"| key | meaning |\n| --- | --- |\n{rows}\n\n" in PAGES["docs/reference/logs.md"]


def test_every_line_of_our_own_has_a_name() -> None:
    calls = [
        (f"{path}:{node.lineno}", node)
        for folder in ("inbox", "relay")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(r"_?(\w+_)?log\.\w+", ast.unparse(node.func))
    ]
    logging_calls = [(place, node) for place, node in calls if ast.unparse(node.func).rpartition(".")[2] in METHODS]
    assert len(logging_calls) > 30
    assert [place for place, node in logging_calls if "extra" not in {each.arg for each in node.keywords}] == []


METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
