"""deploy/compose.yaml, deploy/kubernetes and deploy/Containerfile are valid, hardened, and fit the programs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.deploy.shipped import DEPLOY, GRACE, READ, compose, configuration, image, manifests, pods, unit
from tests.docs.pages import ROOT, parse_command

SERVICES = compose()["services"]
OURS = {name: made for name, made in SERVICES.items() if "inbox-relay" in made["image"]}
PODS = pods()
ONCE = {"migrate", "check"}
"""Services that run once."""
LONGEST_WAIT = 75
"""Seconds that nginx waits for a running request, its `proxy_read_timeout`."""


def seconds(duration: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    """Compose checks the schema and all references of services."""
    program = Path(sys.executable).parent / "docker-compose"
    done = subprocess.run(
        [program, "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", OURS)
def test_each_service_has_a_valid_command_and_is_hardened(name: str) -> None:
    made = OURS[name]
    parse_command(shlex.join(made["command"]))
    assert made["command"][1] in {"serve", "run", "web", "migrate", "check"}
    assert "--bind" not in made["command"] or made["command"][-1].startswith("0.0.0.0:")  # in its container
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


def test_units_containers_and_pods_get_more_time_to_stop_than_the_program_needs() -> None:
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


def test_services_start_after_the_migration_and_have_a_health_check() -> None:
    for name in OURS.keys() - ONCE:
        assert OURS[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
        check = OURS[name].get("healthcheck")
        assert check or (OURS[name]["command"][1] == "serve" and ":8000/" in image()["HEALTHCHECK"][-1]), name


def test_a_service_mounts_only_the_secrets_that_it_reads() -> None:
    assert READ["check"] == set(re.findall(r'"file:/s/([\w-]+)"', configuration(Path("/s"), {})))
    for name, made in OURS.items():
        targets = {each["target"] for each in made["secrets"]}
        assert targets == {f"/etc/inbox-relay/secrets/{secret}" for secret in READ[name.split("-")[0]]}, name


def test_the_proxy_reaches_fixed_addresses_and_is_trusted() -> None:
    def address(name: str) -> str:
        return str(SERVICES[name]["networks"]["front"]["ipv4_address"])

    upstreams = (DEPLOY / "nginx" / "upstreams.compose.conf").read_text(encoding="utf-8")
    found = re.findall(r"^ *server ([\d.]+):(\d+)", upstreams, re.MULTILINE)
    bound = {name: SERVICES[name]["command"][-1].split(":")[1] for name in ("receiver-1", "receiver-2", "web")}
    assert found == [(address(name), port) for name, port in bound.items()]
    for name in bound:
        assert SERVICES[name]["environment"]["FORWARDED_ALLOW_IPS"] == address("nginx")


def test_only_our_services_reach_the_database() -> None:
    networks: dict[str, Any] = compose()["networks"]
    assert networks["data"] == {"internal": True}
    assert {name for name, made in SERVICES.items() if "data" in made["networks"]} == {"db", *OURS}


# --- deploy/kubernetes


OBJECTS = {
    f"{made['kind']} {made['metadata'].get('name') or made['metadata']['generateName']}": made for made in manifests()
}


@pytest.mark.parametrize("name", OBJECTS)
def test_each_object_conforms_to_the_api(name: str) -> None:
    """lightkube-models has classes from the API's OpenAPI description, with types and required keys."""
    made = OBJECTS[name]
    group, _, version = made["apiVersion"].rpartition("/")
    module = import_module(f"lightkube.models.{(group or 'core').split('.')[0]}_{version}")
    kind = getattr(module, made["kind"])
    msgspec.convert(made, kind)
    assert kind.from_dict(made).to_dict() == made


@pytest.mark.parametrize("program", PODS)
def test_each_pod_is_hardened(program: str) -> None:
    pod = PODS[program]
    (container,) = pod["containers"]
    assert (pod["automountServiceAccountToken"], pod["securityContext"]["runAsNonRoot"]) == (False, True)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"].keys() == {"memory"}
    parse_command(shlex.join(container["args"]))


@pytest.mark.parametrize("program", PODS)
def test_a_pod_mounts_only_the_secrets_that_it_reads(program: str) -> None:
    (etc,) = (each["projected"]["sources"] for each in PODS[program]["volumes"] if each["name"] == "etc")
    items = next(source["secret"]["items"] for source in etc if "secret" in source)
    assert {each["path"] for each in items} == {f"secrets/{name}" for name in READ[program]}
    assert {"name": "etc", "mountPath": "/etc/inbox-relay"} in PODS[program]["containers"][0]["volumeMounts"]


def test_selectors_find_the_pods_of_their_program() -> None:
    for name, made in OBJECTS.items():
        labels = made["metadata"]["labels"]
        spec = made["spec"]
        selector = spec.get("selector", spec.get("podSelector"))
        if selector is not None:
            assert selector.get("matchLabels", selector) == labels, name
        if "template" in spec:
            assert spec["template"]["metadata"]["labels"] == labels, name


def test_services_and_network_policies_have_the_ports_of_the_containers() -> None:
    for program in ("receiver", "web"):
        (container,) = PODS[program]["containers"]
        port = int(container["args"][-1].split(":")[1])
        assert container["ports"] == [{"name": "http", "containerPort": port}]
        name = f"inbox-relay-{program}"
        assert [each["port"] for each in OBJECTS[f"Service {name}"]["spec"]["ports"]] == [port]
        (rule,) = OBJECTS[f"NetworkPolicy {name}"]["spec"]["ingress"]
        assert rule["ports"] == [{"port": port}]


# --- deploy/Containerfile


CONTAINERFILE = DEPLOY / "Containerfile"
BUILDAH = shutil.which("buildah")
TAG = "localhost/inbox-relay:test"
SHOWN = """
import importlib.metadata, importlib.util, json, os, subprocess
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(json.dumps({
    "user": os.getuid(),
    "inbox": subprocess.run(["inbox", "--help"], **quiet).returncode,
    "relay": subprocess.run(["relay", "--help"], **quiet).returncode,
    "bill": json.load(open("/usr/share/doc/inbox-relay/sbom.json"))["bomFormat"],
    "pip": importlib.util.find_spec("pip") is not None,
    "packages": sorted(each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()),
    "writable": [each for each in ("/opt/inbox-relay", "/etc/inbox-relay", "/usr") if os.access(each, os.W_OK)],
}))
"""


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", CONTAINERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_an_unprivileged_user_and_only_listed_files() -> None:
    """No `COPY .` and no secret as an argument or variable: all users of an image can read its layers."""
    lines = CONTAINERFILE.read_text(encoding="utf-8").splitlines()
    copied = {
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored[1:]} == copied
    assert [line.split()[1] for line in lines if line.startswith("USER ")] == ["10001:10001"]
    assert [line for line in lines if line.startswith("ARG ")] == ["ARG PYTHON=python:3.13-slim-trixie"]
    assert image()["CMD"][:2] == ["inbox", "serve"]


def find_limitation(stderr: str) -> str | None:
    """Return buildah's line that this machine cannot build any image, or None for another error."""
    signs = ("initializing source docker://", 'could not find "netavark"')  # the base image, and buildah's own helper
    return next((line for line in stderr.splitlines() if any(sign in line for sign in signs)), None)


@pytest.mark.nightly
@pytest.mark.skipif(BUILDAH is None, reason="no buildah: the image is not built")
def test_the_built_image_has_the_programs_and_the_bill_of_materials() -> None:
    """IMAGE_BUILD has additional options, such as `--build-arg=PYTHON=localhost/python` for another base image."""
    options = shlex.split(os.environ.get("IMAGE_BUILD", ""))
    build = shlex.join([str(BUILDAH), "build", "--format=docker", "--isolation=chroot", "--retry=0", *options])
    made = ["make", "--assume-old=.venv/.ready", "image", f"BUILD={build}", f"IMAGE={TAG}"]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=False)
    if (lacks := find_limitation(done.stderr)) is not None:
        pytest.skip(f"the image is not built: {lacks}")
    assert done.returncode == 0, done.stderr
    about = msgspec.json.decode(buildah("inspect", "--type=image", TAG))["Docker"]["config"]
    assert (about["User"], about["WorkingDir"], about["Cmd"]) == ("10001:10001", "/etc/inbox-relay", image()["CMD"])
    assert about["Healthcheck"]["Test"] == ["CMD", *image()["HEALTHCHECK"]]
    container = buildah("from", TAG).strip()
    try:
        shown = msgspec.json.decode(buildah("run", "--isolation=chroot", container, "python3", "-c", SHOWN))
    finally:
        buildah("rm", container)
    lock = (ROOT / "requirements-runtime.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==[^;]*$", lock, re.MULTILINE))
    assert locked <= set(shown.pop("packages"))
    assert shown == {"user": 10001, "inbox": 0, "relay": 0, "bill": "CycloneDX", "pip": False, "writable": []}


def buildah(*arguments: str) -> str:
    assert BUILDAH is not None
    return subprocess.run([BUILDAH, *arguments], capture_output=True, text=True, check=True, timeout=300).stdout
