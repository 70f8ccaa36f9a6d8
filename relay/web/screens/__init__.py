"""Every screen of the page, in the order of the menu."""

from __future__ import annotations

from typing import get_args

from inbox.db.erasure import PSEUDONYM
from inbox.events.states import COMMAND_KINDS, COMMAND_STATES
from relay.delivery.alerts import AlertKind
from relay.delivery.facts import CAUSES
from relay.filters import STATES
from relay.findings import from_alert
from relay.web.reading import Screen
from relay.web.screens import event, lists, overview, route

_COMMANDS = {"kinds": COMMAND_KINDS, "states": COMMAND_STATES}
_DELIVERIES = {"states": STATES}
_OVERVIEW = {"button_of": overview.make_button}
_ALERTS = _OVERVIEW | {"kinds": get_args(AlertKind), "from_alert": from_alert}
EVENT = Screen("event", "/events/{seq}", "Event", event.event, values={"shown": None})
SCREENS = (
    Screen("overview", "/", "Overview", overview.overview, "o", values=_OVERVIEW),
    Screen("deliveries", "/deliveries", "Deliveries", lists.read_deliveries, "d", values=_DELIVERIES),
    EVENT,
    Screen("entity", "/entity", "Entity", event.entity, values={"pseudonym": PSEUDONYM}),
    Screen("difference", "/entity/difference", "Difference", event.difference, is_live=False),
    Screen("route", "/route", "Route", route.read_route, values=_OVERVIEW),
    Screen("dead", "/dead", "Dead letters", lists.list_dead, "l", is_live=False, values={"causes": CAUSES}),
    Screen("gates", "/gates", "Gates and sweeps", overview.gates, "g", is_live=False),
    Screen("rejected", "/rejected", "Rejected requests", lists.list_rejected, "r"),
    Screen("commands", "/commands", "Commands", lists.list_commands, "c", values=_COMMANDS),
    Screen("command", "/commands/{id}", "Command", lists.read_command),
    Screen("alerts", "/alerts", "Alerts", lists.list_alerts, "a", values=_ALERTS),
    Screen("doctor", "/doctor", "Doctor", overview.doctor, "h", is_live=False),
)
