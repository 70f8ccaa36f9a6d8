"""The Grafana dashboard, made of the panels by Grafana's own types."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)

from docs.blocks.panels import ROWS, Panel
from inbox.telemetry import metrics

UID = "inbox-relay"
_PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT, _NUMBER_HEIGHT = 8, 4
_INSTANCES = f'label_values({{__name__=~"{metrics.BATCH_EVENTS.name}_count|{metrics.DISCARDED.name}"}}, instance)'

_Drawn = stat.Panel | statetimeline.Panel | timeseries.Panel


def grafana_dashboard() -> str:
    """Return the dashboard as JSON."""
    made = (
        dashboard.Dashboard("Inbox Relay")
        .uid(UID)
        .description("Intake, deliveries and database. Written by docs/generate.py from the registry of metrics.")
        .tags(["inbox-relay", "webhooks"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("instance", "Instance", _INSTANCES))
        .with_variable(_variable("source", "Source", f"label_values({metrics.REJECTED.name}, source)"))
        .with_variable(_variable("route", "Route", f"label_values({metrics.OPEN.name}, route)"))
    )
    for title, panels in ROWS.items():
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(_drawn(panel))
    built = made.build()
    for number, each in enumerate(built.panels or [], start=1):
        each.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_PROMETHEUS)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _drawn(panel: Panel) -> _Drawn:
    form: _Drawn
    match panel.form:
        case "number":
            form = (
                stat.Panel()
                .color_mode(BigValueColorMode.VALUE)
                .graph_mode(BigValueGraphMode.NONE)
                .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
                .height(_NUMBER_HEIGHT)
            )
        case "states":
            form = statetimeline.Panel().line_width(0).fill_opacity(70).mappings([_words(panel.values)]).height(_HEIGHT)
        case _:
            form = _lines(panel)
    form = (
        form.title(panel.title)
        .description(" ".join(metric.help for metric in panel.shows))
        .datasource(_PROMETHEUS)
        .unit(panel.unit)
        .thresholds(_thresholds(panel))
        .span(panel.width)
    )
    for place, (legend, expression) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id("ABCDEF"[place])
        form = form.with_target(query.instant() if panel.form == "number" else query.range())
    return form


def _lines(panel: Panel) -> timeseries.Panel:
    form = (
        timeseries.Panel()
        .height(_HEIGHT)
        .fill_opacity(10)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.form == "stack":
        form = form.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if panel.steps:
        form = form.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return form


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    base = "red" if panel.steps and panel.steps[0][1] == "green" else "green"
    steps = [
        Threshold(value=None, color=base),
        *(Threshold(value=float(value), color=colour) for value, colour in panel.steps),
    ]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _words(values: tuple[str, ...]) -> ValueMapping:
    return ValueMap({str(value): ValueMappingResult(text=word, index=value) for value, word in enumerate(values)})
