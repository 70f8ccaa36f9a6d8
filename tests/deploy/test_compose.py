"""deploy/compose.yaml: Compose's own schema takes it, and its commands, times and addresses fit the programs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.shipped import DEPLOY, GRACE, READ, compose, configuration, image, pods, unit
from tests.docs.pages import understood

SERVICES = compose()["services"]
OURS = {name: made for name, made in SERVICES.items() if "inbox-relay" in made["image"]}
PODS = pods()
ONCE = {"migrate", "check"}
"""Services that end by themselves."""
LONGEST_WAIT = 75
"""Seconds of `proxy_read_timeout`: nginx waits so long for a request that still runs."""


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def test_compose_itself_takes_it(tmp_path: Path) -> None:
    """It checks the file against its schema, and everything that the services name."""
    program = Path(sys.executable).parent / "docker-compose"
    done = subprocess.run(
        [program, "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", OURS)
def test_each_program_of_ours_is_started_by_a_command_that_it_knows_and_fenced_in(name: str) -> None:
    made = OURS[name]
    understood(shlex.join(made["command"]))
    assert made["command"][1] in {"serve", "run", "web", "migrate", "check"}
    assert "--bind" not in made["command"] or made["command"][-1].startswith("0.0.0.0:")  # of its container
    assert (made["read_only"], made["cap_drop"], made["init"]) == (True, ["ALL"], True)
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert not {"ports", "privileged", "user"} & made.keys()
    assert "env_file" not in made
    assert set(made.get("environment", {})) <= {"FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY"}
    assert all("size=" in place for place in made["tmpfs"])
    limit = f"{made['mem_limit']}i".replace("m", "M").replace("g", "G")
    assert (
        name in ONCE or limit == PODS[name.split("-", maxsplit=1)[0]]["containers"][0]["resources"]["limits"]["memory"]
    )


def test_no_container_fills_the_disk_with_logs_and_receivers_leave_connections_to_the_others() -> None:
    """By default Docker rotates no log, and a receiver has a process for each processor of the host."""
    for name, made in SERVICES.items():
        assert made["logging"]["options"].keys() == {"max-size", "max-file"}, name
    processes = {made["environment"]["WEB_CONCURRENCY"] for name, made in OURS.items() if name.startswith("receiver")}
    in_pods = {each["name"]: each.get("value") for each in PODS["receiver"]["containers"][0]["env"]}
    assert processes == {in_pods["WEB_CONCURRENCY"]}


def test_a_stop_has_more_time_than_the_program_takes_in_units_containers_and_pods() -> None:
    for name in OURS.keys() - ONCE:
        program = name.split("-")[0]
        pod = PODS[program]
        before = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        times = (
            seconds(OURS[name]["stop_grace_period"]),
            int(unit(f"inbox-relay-{program}.service")["TimeoutStopSec"]),
            pod["terminationGracePeriodSeconds"] - before,
        )
        assert min(times) >= GRACE[program] + 5, (name, times)
    assert seconds(SERVICES["nginx"]["stop_grace_period"]) > LONGEST_WAIT


def test_nothing_starts_before_the_migration_and_everything_that_stays_has_a_health_check() -> None:
    for name in OURS.keys() - ONCE:
        assert OURS[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
        check = OURS[name].get("healthcheck")
        assert check or (OURS[name]["command"][1] == "serve" and ":8000/" in image()["HEALTHCHECK"][-1]), name


def test_the_secrets_that_a_program_reads_are_mounted_and_no_other() -> None:
    assert READ["check"] == set(re.findall(r'"file:/s/([\w-]+)"', configuration(Path("/s"), {})))
    for name, made in OURS.items():
        targets = {each["target"] for each in made["secrets"]}
        assert targets == {f"/etc/inbox-relay/secrets/{secret}" for secret in READ[name.split("-")[0]]}, name


def test_the_proxy_reaches_the_fixed_addresses_and_is_believed() -> None:
    def address(name: str) -> str:
        return str(SERVICES[name]["networks"]["front"]["ipv4_address"])

    upstreams = (DEPLOY / "nginx" / "upstreams.compose.conf").read_text(encoding="utf-8")
    found = re.findall(r"^ *server ([\d.]+):(\d+)", upstreams, re.MULTILINE)
    bound = {name: SERVICES[name]["command"][-1].split(":")[1] for name in ("receiver-1", "receiver-2", "web")}
    assert found == [(address(name), port) for name, port in bound.items()]
    for name in bound:
        assert SERVICES[name]["environment"]["FORWARDED_ALLOW_IPS"] == address("nginx")


def test_the_database_is_in_reach_of_ours_alone() -> None:
    networks: dict[str, Any] = compose()["networks"]
    assert networks["data"] == {"internal": True}
    assert {name for name, made in SERVICES.items() if "data" in made["networks"]} == {"db", *OURS}
