"""Writes the generated parts of the documentation, and `FILES`: `python docs/generate.py`; `--check` only compares.

A page holds its parts between `<!-- generated: NAME -->` and `<!-- end -->`; everything outside is written by hand. NAME is
a key of `BLOCKS`. `docs/meanings.toml` explains whatever has no docstring in the code.
"""  # noqa: INP001  # a script beside pages

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout is described, whatever is installed

from docs.blocks import (
    commands,
    configuration,
    delivery,
    doctor,
    entities,
    figures,
    house,
    json_schema,
    metrics,
    presets,
    schema,
    states,
    web,
)
from docs.blocks.common import ROOT

PAGES = (*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

BLOCKS: dict[str, Callable[[], str]] = {
    "packages": house.draw_packages,
    "states-diagram": states.draw_states,
    "states": states.list_states,
    "scheduling-steps": states.list_scheduling_steps,
    "fact-kinds": states.list_fact_kinds,
    "outcome-classes": delivery.list_outcome_classes,
    "forward-headers": delivery.list_forward_headers,
    "retry-schedule": delivery.list_attempts,
    "breaker-states": delivery.list_breaker_states,
    "alert-kinds": delivery.list_alert_kinds,
    "examinations": doctor.list_examinations,
    "doctor-findings": doctor.list_findings,
    "common-options": commands.list_common_options,
    "inbox-commands": commands.describe_inbox,
    "relay-commands": commands.describe_relay,
    "sql-commands": commands.list_sql_commands,
    "receiver-metrics": metrics.list_receiver_metrics,
    "relay-metrics": metrics.list_relay_metrics,
    "alert-rules": metrics.list_alert_rules,
    "config-keys": configuration.list_config_keys,
    "template-forms": configuration.list_template_forms,
    "preset-proofs": presets.list_proofs,
    "preset-answers": presets.list_responses,
    "figures": figures.list_figures,
    "entity-diagram": entities.draw_entities,
    "schema-tables": schema.describe_tables,
    "schema-views": schema.describe_views,
    "api-endpoints": web.list_endpoints,
    "api-acts": web.list_acts,
    "api-problems": web.list_problems,
}

FILES: dict[Path, Callable[[], str]] = {ROOT / "inbox" / "config" / "inbox.schema.json": json_schema.format_json_schema}
"""Files that are generated whole."""


def main(arguments: list[str]) -> int:
    """Write every page anew; with `--check`, name the stale ones and return 1 if there are any."""
    stale = {
        path: text
        for path, text in ((path, render_file(path)) for path in (*PAGES, *FILES))
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        if "--check" in arguments:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: run python docs/generate.py\n")
        else:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in arguments else 0


def render_file(path: Path) -> str:
    """Return a page with its blocks generated anew, or a file that is generated whole."""
    return FILES[path]() if path in FILES else render_page(path)


def render_page(page: Path) -> str:
    """Return the page with its blocks generated anew."""
    return _BLOCK.sub(
        lambda match: f"{match[1]}{BLOCKS[match[2]]().strip()}\n{match[3]}", page.read_text(encoding="utf-8")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
