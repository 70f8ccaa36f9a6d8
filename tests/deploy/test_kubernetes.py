"""deploy/kubernetes: each object is one of the API, as its OpenAPI description has it, and fits the programs."""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import Any

import msgspec
import pytest

from tests.deploy.shipped import READ, manifests, pods
from tests.docs.pages import understood

OBJECTS = {
    f"{made['kind']} {made['metadata'].get('name') or made['metadata']['generateName']}": made for made in manifests()
}
PODS = pods()


@pytest.mark.parametrize("name", OBJECTS)
def test_each_object_is_one_of_the_api(name: str) -> None:
    """Its class is made by lightkube-models of the API's description: types and required keys fit, and none is unknown."""
    made = OBJECTS[name]
    group, _, version = made["apiVersion"].rpartition("/")
    module = import_module(f"lightkube.models.{(group or 'core').split('.')[0]}_{version}")
    kind = getattr(module, made["kind"])
    msgspec.convert(made, kind)
    assert kind.from_dict(made).to_dict() == made


@pytest.mark.parametrize("program", PODS)
def test_each_pod_is_fenced_in(program: str) -> None:
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
    understood(shlex.join(container["args"]))


@pytest.mark.parametrize("program", PODS)
def test_the_secrets_that_a_program_reads_are_mounted_and_no_other(program: str) -> None:
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


def test_each_program_has_a_policy_of_its_network_and_those_of_two_may_not_all_be_evicted() -> None:
    kinds = {program: {made["kind"] for made in OBJECTS.values() if _component(made) == program} for program in PODS}
    assert kinds == {
        "migrate": {"Job", "NetworkPolicy"},
        "receiver": {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"},
        "relay": {"Deployment", "PodDisruptionBudget", "NetworkPolicy"},
        "web": {"Deployment", "Service", "NetworkPolicy"},
    }
    for made in OBJECTS.values():
        if made["kind"] == "PodDisruptionBudget":
            assert OBJECTS[f"Deployment {made['metadata']['name']}"]["spec"]["replicas"] > made["spec"]["minAvailable"]


def test_ports_of_services_are_those_that_are_bound_and_let_in() -> None:
    for program in ("receiver", "web"):
        (container,) = PODS[program]["containers"]
        port = int(container["args"][-1].split(":")[1])
        assert container["ports"] == [{"name": "http", "containerPort": port}]
        name = f"inbox-relay-{program}"
        assert [each["port"] for each in OBJECTS[f"Service {name}"]["spec"]["ports"]] == [port]
        (rule,) = OBJECTS[f"NetworkPolicy {name}"]["spec"]["ingress"]
        assert rule["ports"] == [{"port": port}]


def _component(made: dict[str, Any]) -> str:
    return str(made["metadata"]["labels"]["app.kubernetes.io/component"])
