"""`POST /doctor/run`: starts the examinations of `inbox doctor`."""

from __future__ import annotations

import falcon
import msgspec
from falcon.asgi import Request, Response

from inbox.clock import Clock
from relay.web.acts.requests import one_each, require_operator
from relay.web.doctor_runner import DoctorRunner
from relay.web.problems import API
from relay.web.query import parse

PATH = "/doctor/run"


class DoctorRunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """It takes no parameter."""


class DoctorRun:
    """Starts a run, unless one is under way or the last report is young; either way the report is at `/doctor`."""

    def __init__(self, runner: DoctorRunner, clock: Clock) -> None:
        self._runner, self._clock = runner, clock

    async def on_post(self, req: Request, _resp: Response) -> None:
        """Start it, and show the screen."""
        self._ask(req)
        raise falcon.HTTPSeeOther("/doctor")

    async def on_post_json(self, req: Request, resp: Response) -> None:
        """Start it, and say where the report will be."""
        self._ask(req)
        resp.status = falcon.HTTP_202
        resp.location = f"{API}/doctor"

    def _ask(self, req: Request) -> None:
        require_operator(req)
        parse(DoctorRunQuery, one_each(req.params), self._clock.now())
        self._runner.ask()
