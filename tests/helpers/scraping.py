"""A scrape, as Prometheus does it: by HTTP, and with the client library's own parser."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.processes import Program, free_port

Samples = dict[str, dict[tuple[str, ...], float]]
"""By name, and by the values of the labels in the order of their names."""


def metrics_at(side: str) -> tuple[int, str]:
    """A free port, and the lines of an inbox.toml that have one side serve its metrics there."""
    port = free_port()
    return port, f'\n[metrics]\n{side} = "127.0.0.1:{port}"\n'


def exporter_of(program: Program) -> int:
    """The pid of the child that serves its metrics."""
    return next(pid for pid in program.children() if b"inbox.observe.exporter" in _command_line(pid))


def _command_line(pid: int) -> bytes:
    """Nothing of one that ends just now, as a worker does that was replaced."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def scrape(port: int, within: float = 10.0) -> Samples:
    """Return the samples that are served there.

    Raises:
        OSError: nobody serves, or not in time.
    """
    return parsed(_text(port, within))


def exposition(port: int) -> str | None:
    """The text that is served there; None: nobody answers."""
    try:
        return _text(port, 10)
    except OSError:
        return None


def _text(port: int, within: float) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=within) as answer:
        text: str = answer.read().decode()
    return text


def parsed(text: str) -> Samples:
    """The samples of an exposition."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), f"{sample.name}{labels} twice"
            found[sample.name][labels] = sample.value
    return found


def served(port: int) -> Samples | None:
    """Return the samples that are served there; None: nobody answers."""
    try:
        return scrape(port)
    except OSError:
        return None


def total(samples: Samples, name: str) -> float:
    """A metric over all its labels."""
    return sum(samples.get(name, {}).values())
