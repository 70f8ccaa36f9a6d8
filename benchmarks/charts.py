"""Charts of measured figures, as SVG: `python -m benchmarks.charts` draws `results/latest.json` again.

Each lies on a light card of its own, so that it can be read on a light and on a dark page. No script and no font is in it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pygal
from pygal.style import Style

from benchmarks.results import Results

FOLDER = Path(__file__).parent / "results"
PRODUCT = "Inbox Relay"
OURS, THEIRS = "#1f6feb", "#8c959f"
_STYLE = Style(
    background="#f6f8fa",
    plot_background="#f6f8fa",
    foreground="#24292f",
    foreground_strong="#24292f",
    foreground_subtle="#d0d7de",
    colors=(OURS,),
    font_family="system-ui, sans-serif",
    title_font_size=18,
    label_font_size=14,
    major_label_font_size=14,
    value_font_size=14,
    value_colors=("#24292f",),
    opacity="1",
    stroke_opacity="1",
    stroke_width="2.5",
    guide_stroke_color="#d0d7de",
    guide_stroke_dasharray="0",
    major_guide_stroke_color="#d0d7de",
    major_guide_stroke_dasharray="0",
)
_COMMON: Mapping[str, Any] = {
    "style": _STYLE,
    "js": (),
    "no_prefix": True,
    "show_legend": False,
    "width": 760,
    "margin": 20,
    "margin_right": 40,
    "value_formatter": lambda value: f"{value:,.0f}",
}


_CSS = (
    "file://style.css",
    "file://graph.css",
    "inline:.text-overlay text { transform: translate(-16px, -28px); text-anchor: middle }",
)
"""Moves the values of points above the line."""


class Bars(msgspec.Struct, frozen=True):
    """The sides of one command, as bars."""

    command: str
    title: str
    without: tuple[str, ...] = ()
    """Name prefixes of sides to omit, as they store nothing."""


BARS: Mapping[str, Bars] = {
    "intake-postgres": Bars(
        "intake-postgres", "Webhooks stored per second, Postgres", ("the same app", "bare Falcon", "pgbench")
    ),
    "intake-sqlite": Bars(
        "intake-sqlite", "Webhooks stored per second, SQLite", ("the same app", "bare Falcon", "bare SQLite")
    ),
    "drain-postgres": Bars("drain-postgres", "Deliveries per second, one process, Postgres"),
}


def draw(results: Results, folder: Path = FOLDER) -> list[Path]:
    """Write a chart for each measured command and return the paths."""
    drawn = {}
    for name, bars in BARS.items():
        if isinstance(printed := results.printed.get(bars.command), dict):
            drawn[name] = _bars(bars, printed["sides"])
    for name, printed in results.printed.items():
        if isinstance(printed, dict) and len(printed.get("points", ())) > 2:
            drawn[name] = _curve(printed)
    paths = []
    for name, svg in drawn.items():
        paths.append(folder / f"{name}.svg")
        paths[-1].write_bytes(svg)
    return paths


def _bars(bars: Bars, sides: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the product's bar first, in its colour."""
    shown = [side for side in sides if not side["side"].startswith(bars.without or "\0")]
    chart = pygal.HorizontalBar(**_COMMON, title=bars.title, height=100 + 48 * len(shown))
    rates = {side["side"]: statistics.median(side["rounds"]) for side in shown}
    ours = shown[0]["side"]
    names = list(reversed(rates))  # the first is drawn at the bottom
    chart.x_labels = [f"{PRODUCT if name == ours else name}: {rates[name]:,.0f}" for name in names]
    chart.y_labels = [0]
    chart.add("", [{"value": rates[name], "color": OURS if name == ours else THEIRS} for name in names])
    return _render(chart)


def _curve(printed: Mapping[str, Any]) -> bytes:
    title = f"{printed['title']} ({printed['unit']}, {printed['database']})"
    chart = pygal.Line(
        **_COMMON, title=title, height=300, range=(0, None), dots_size=5, max_scale=5, print_values=True, css=_CSS
    )
    chart.x_labels = [f"{point['at']:,}" for point in printed["points"]]
    chart.add("", [statistics.median(point["rounds"]) for point in printed["points"]])
    return _render(chart)


def _render(chart: pygal.graph.graph.Graph) -> bytes:
    """Render a chart without the library's unused script."""
    svg: str = chart.render(is_unicode=True, disable_xml_declaration=True)
    return re.sub(r"<script.*?</script>|<!--.*?-->", "", svg, flags=re.DOTALL).encode() + b"\n"


if __name__ == "__main__":
    for path in draw(msgspec.json.decode((FOLDER / "latest.json").read_bytes(), type=Results)):
        print(path)
