"""docs/how-to/troubleshoot.md shows messages in the product's words, and commands that it understands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, understood

PAGE = PAGES["docs/how-to/troubleshoot.md"]
MESSAGES = dict(re.findall(r"^### ([^\n]+)\n\n```text\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
FEW_WORDS = 7
"""A shorter message has little more than a value, or words of HTTP or of the database."""


def words_of(text: str) -> list[str]:
    return re.sub(r"[^\w.`/-]", " ", text).split()


def test_a_message_has_words_of_the_product() -> None:
    texts = [
        node.value
        for folder in ("inbox", "relay")
        for path in Path(folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    product = " ".join(words_of("\n".join(texts)))
    long = {heading: words_of(text) for heading, text in MESSAGES.items() if len(words_of(text)) >= FEW_WORDS}
    threes = {heading: {" ".join(words[n : n + 3]) for n in range(len(words) - 2)} for heading, words in long.items()}
    strange = [heading for heading, said in threes.items() if not any(three in product for three in said)]
    assert strange == ["404"], "which Falcon words"
    assert len(long) > 15


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`((?:inbox|relay) [^`\n]+)`", PAGE))))
def test_every_command_is_understood(line: str) -> None:
    understood(re.sub(r"\b(ID|SEQ)\b", "1", line))
