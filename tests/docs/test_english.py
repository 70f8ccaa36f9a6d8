"""Docstrings, comments and names read as an engineer would write them, and a product class shares its name with no other."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.docs.pages import ROOT

FOLDERS = ("inbox", "relay", "migrations", "benchmarks", "docs", "tests")
PRODUCT = ("inbox", "relay", "migrations")
SHARED_NAMES = {
    "Event": "relay.handler.Event is public: the part of an event that a handler of the operator's own gets",
    "Retry": "relay.handler.Retry is public, and the table `retry` of inbox.toml has a class of its name",
}
"""Class names that two modules of the product may define, each with the reason."""

REFUSED = {
    "a clause as an opener": re.compile(r"\A\s*(?:How|If|That|Those|What|When|Where|Whether|Which|Who|Whose)\b"),
    "a vague person": re.compile(r"\b(?:some|no|any|every)body\b|\bwho(?:m)?ever\b", re.IGNORECASE),
    "a clause with “what” as a noun": re.compile(r"\bwhat\b(?! to\b)(?![^.:;\n]*\?)", re.IGNORECASE),
    "“is no X” for “is not an X”": re.compile(
        r"(?<!there )\b(?:is|are|was|were|be) (?:none\b|no (?!longer|more|less|fewer|larger|later|older|newer))",
        re.IGNORECASE,
    ),
}
"""Patterns of English that reads as translated, with their names. The first holds for docstrings alone."""

PREPOSITIONS = frozenset(
    ["about", "among", "at", "below", "beneath", "beside", "besides", "between", "beyond", "by", "during"]
) | {"for", "in", "of", "over", "since", "under", "within"}
"""Words that no function begins with; those of conversions, builders and waits are allowed: as, from, to, with, until, before."""
VERBS_LIKE_PARTICIPLES = frozenset(["bleed", "embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed"])


class Sentence(NamedTuple):
    """A docstring or a comment, with its line."""

    line: int
    text: str
    is_docstring: bool


def read_modules(folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield path and text of each Python file below `folders`."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def read_sentences(code: str) -> Iterator[Sentence]:
    """Yield each docstring, those of attributes included, and each comment."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield Sentence(node.lineno, text, is_docstring=True)
            case _:
                pass
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield Sentence(token.start[0], token.string, is_docstring=False)


def find_sentences(code: str) -> Iterator[tuple[int, str]]:
    """Yield line and reason of each sentence that reads as translated."""
    for line, text, is_docstring in read_sentences(code):
        for reason, pattern in REFUSED.items():
            if (found := pattern.search(text)) and (is_docstring or not pattern.pattern.startswith(r"\A")):
                excerpt = text[max(found.start() - 40, 0) : found.end() + 40].replace("\n", " ")
                yield line + text[: found.start()].count("\n"), f"{reason}: …{excerpt}…"


def find_names(code: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each function that begins with a preposition or a participle instead of a verb."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        is_value = any(
            "property" in ast.unparse(each) or "fixture" in ast.unparse(each) for each in node.decorator_list
        )
        first = node.name.strip("_").split("_")[0]
        is_participle = first.endswith("ed") and first not in VERBS_LIKE_PARTICIPLES
        if not is_value and (first in PREPOSITIONS or is_participle):
            yield node.lineno, node.name


@pytest.mark.parametrize("refused", [find_sentences, find_names])
def test_nothing_reads_as_translated(refused: object) -> None:
    assert callable(refused)
    found = [f"{path}:{line}: {text}" for path, code in read_modules(FOLDERS) for line, text in refused(code)]
    assert not found, "\n" + "\n".join(found)


def test_no_two_product_classes_share_a_name() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path, code in read_modules(PRODUCT):
        for node in ast.parse(code).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path)
    assert not {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_NAMES}


def test_every_kind_of_sentence_is_seen() -> None:
    code = (
        '"""What m."""\nx = 1\n"""Nobody knows x."""\nclass C:\n    """Is none."""\n    y: int\n    """Whoever asks."""\n'
        '    async def of_f(self):\n        """What f."""\n        def signed_g():\n            return 1  # what is g\n'
    )
    assert sorted({line for line, _ in find_sentences(code)}) == [1, 3, 5, 7, 9, 11]
    assert [name for _, name in find_names(code)] == ["of_f", "signed_g"]
