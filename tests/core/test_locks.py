"""The runtime lock is a part of the full lock: the product's own dependencies, in the versions that the tests use.

It has those of the extra `otel` too. The lock of the benchmarks has the product's: what is measured is what is served.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FULL, RUNTIME, BENCH = "requirements.lock", "requirements-runtime.lock", "requirements-bench.lock"
OF_AN_EXTRA = {"email-validator", "dnspython", "pysocks", "linkify-it-py"}
"""Packages of `pydantic[email]` (of scim2-models), `urllib3[socks]` (of selenium) and `markdown-it-py[linkify]` (of mutmut): the
lock has them under pydantic, urllib3 and markdown-it-py, which run without."""


class Pin(NamedTuple):
    """An entry of a lock, without its marker, which may be wider where developers' packages need it on more systems."""

    name: str
    version: str
    hashes: frozenset[str]


def read(lock: str) -> dict[Pin, frozenset[str]]:
    """Read every entry, with the packages that depend on it."""
    found: dict[Pin, frozenset[str]] = {}
    for entry in re.split(r"^(?=\S)", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        pinned = re.match(r"([a-z0-9-]+)(?:\[[a-z0-9, -]+\])?==(\S+)", entry)
        assert pinned is not None, f"{lock}: no pinned package: {entry}"
        hashes = frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})\b", entry))
        via = frozenset(re.findall(r"^    # (?:via| ) +([\w-]+)", entry, re.MULTILINE))
        found[Pin(pinned[1], pinned[2], hashes)] = via
    return found


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=~! ]", each, maxsplit=1)[0] for each in requirements}


def reached(lock: dict[Pin, frozenset[str]], roots: set[str]) -> set[Pin]:
    """Collect the entries of the roots and of their dependencies."""
    names, before = set(roots), set[str]()
    while names != before:
        before = set(names)
        names |= {pin.name for pin, via in lock.items() if via & names}
    return {pin for pin in lock if pin.name in names}


def test_the_runtime_lock_is_what_the_runtime_dependencies_reach_in_the_full_one() -> None:
    reachable = reached(read(FULL), names_of([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["otel"]]))
    assert read(RUNTIME).keys() == {pin for pin in reachable if pin.name not in OF_AN_EXTRA}


@pytest.mark.parametrize("lock", [FULL, RUNTIME, BENCH])
def test_every_package_of_a_lock_has_hashes_and_no_lock_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert all(pin.hashes for pin in read(lock))
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "an option of pip, as --index-url"


def test_production_is_installed_by_the_runtime_lock() -> None:
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
    page = re.sub(r" \\\n +", " ", page)  # a command that goes on in the next line
    installs = re.findall(r"^\S+ -m pip install (.+)$", page, re.MULTILINE)
    assert installs == [
        f"--require-hashes --only-binary :all: --requirement {RUNTIME}",
        "--no-deps build/wheel/inbox_relay-*.whl",
    ]
