"""`POST /doctor/run`: starts the examinations of `inbox doctor`."""

from __future__ import annotations

import falcon
from falcon.asgi import Request, Response

from inbox.errors import NotAllowed
from relay.web.doctor_runner import DoctorRunner
from relay.web.problems import API

PATH = "/doctor/run"


class DoctorRun:
    """Starts a run, unless one is under way or the last report is young; either way the report is at `/doctor`."""

    def __init__(self, runner: DoctorRunner) -> None:
        self._runner = runner

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
        if not req.context.actor.may_act:
            raise NotAllowed("only operators run the examinations")
        self._runner.ask(online=req.get_param_as_bool("online", default=False) is True)
