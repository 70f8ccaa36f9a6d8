"""The files below deploy/, read: units, the image's commands, services of Compose, and Kubernetes objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import ROOT

DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
INSTALLED = "/opt/inbox-relay/bin/"
GRACE = {"receiver": 15, "relay": 20, "web": 10}
"""Seconds that running requests or calls of a program have after a stop."""

READ: Mapping[str, set[str]] = {
    "migrate": {"database-password"},
    "receiver": {"database-password", "acme"},
    "relay": {"database-password", "crm"},
    "web": {"database-password", "web-users"},
    "check": {"database-password", "acme", "crm", "web-users"},
}
"""The secrets of deploy/inbox.toml that each program reads."""


def unit(name: str) -> Mapping[str, str]:
    """The settings of a unit; of one that is given twice, the last."""
    text = (UNITS / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def image() -> Mapping[str, list[str]]:
    """The commands of the image: `CMD`, and `HEALTHCHECK` without its options."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^(CMD|HEALTHCHECK)\b.*?(\[.*\])$", text, re.MULTILINE)
    return {name: json.loads(command) for name, command in found}


def compose() -> dict[str, Any]:
    """The Compose file."""
    made: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return made


def manifests() -> Iterator[dict[str, Any]]:
    """Each object for Kubernetes."""
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def pods() -> dict[str, dict[str, Any]]:
    """The pod of each program, by its component."""
    return {
        made["metadata"]["labels"]["app.kubernetes.io/component"]: made["spec"]["template"]["spec"]
        for made in manifests()
        if made["kind"] in {"Deployment", "Job"}
    }


def configuration(secrets: Path, changes: Mapping[str, str]) -> str:
    """The text of deploy/inbox.toml with its secrets in another folder, and these changes."""
    text = (DEPLOY / "inbox.toml").read_text(encoding="utf-8")
    for old, new in {"/etc/inbox-relay/secrets": str(secrets), **changes}.items():
        assert old in text, f"deploy/inbox.toml has no {old!r}"
        text = text.replace(old, new)
    return text
