"""The runtime lock is a part of the full lock: the product's own dependencies, in the versions that the tests use.

It has those of the extra `otel` too. The lock of the benchmarks has the same versions as the product's.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.results import Figure, falls, figure_of
from benchmarks.rows import Row

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


def collect_reached(lock: dict[Pin, frozenset[str]], roots: set[str]) -> set[Pin]:
    """Collect the entries of the roots and of their dependencies."""
    names, before = set(roots), set[str]()
    while names != before:
        before = set(names)
        names |= {pin.name for pin, via in lock.items() if via & names}
    return {pin for pin in lock if pin.name in names}


def test_the_runtime_lock_is_what_the_runtime_dependencies_reach_in_the_full_one() -> None:
    reachable = collect_reached(
        read(FULL), names_of([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["otel"]])
    )
    assert read(RUNTIME).keys() == {pin for pin in reachable if pin.name not in OF_AN_EXTRA}


@pytest.mark.parametrize("lock", [FULL, RUNTIME, BENCH])
def test_every_package_of_a_lock_has_hashes_and_no_lock_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert all(pin.hashes for pin in read(lock))
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "an option of pip, as --index-url"


# --- Figures of `python -m benchmarks`: read from a command's output, and compared with committed ones


RATIO = Row("a rate", "command", "sides[0].rounds", "sides[1].rounds", bar=1.0, better=2.0)
LIMIT = Row("a time", "command", "longest", None, bar=250, better=100, unit="ms", is_limit=True)


def output_of(*rounds: list[float]) -> dict[str, Any]:
    return {"sides": [{"rounds": some} for some in rounds]}


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    figure = figure_of(RATIO, output_of([10, 30, 90], [10, 10, 10]))
    assert figure == Figure(figure=3.0, low=1.0, high=9.0, ours=30, theirs=10, rounds=3)
    # The ratio of the medians would be 1: a slow round is slow for both sides.
    assert figure_of(RATIO, output_of([1, 10, 10], [1, 5, 100])).figure == 1.0


@pytest.mark.parametrize(
    ("row", "now", "committed", "has_fallen"),
    [
        (RATIO, 0.75, 1.0, False), (RATIO, 0.74, 1.0, True), (RATIO, 9.0, 1.0, False), (LIMIT, 133.0, 100.0, False),
        (LIMIT, 134.0, 100.0, True), (LIMIT, 1.0, 100.0, False),
    ],
)  # fmt: skip
def test_a_fall_of_more_than_a_quarter_is_found(row: Row, now: float, committed: float, has_fallen: bool) -> None:
    fallen = falls({"row": row}, {"row": Figure(figure=now)}, {"row": Figure(figure=committed)})
    assert (fallen == {"row": f"{now:g}, but {committed:g} is committed"}) == has_fallen
    assert bool(fallen) == has_fallen


def test_a_committed_figure_that_is_not_measured_any_more_is_a_fall() -> None:
    committed = {"row": Figure(figure=2.0), "gone": Figure(figure=1.0), "never": Figure(missing="no redis-server")}
    assert falls({"row": RATIO, "never": RATIO}, {}, committed) == {"row": "not measured; 2 is committed"}
