"""The vendor's own client, PyPI trivoreid 2.0.10."""

from __future__ import annotations

import warnings
from typing import Any


def connected(url: str) -> Any:  # noqa: ANN401  # the package has no types
    """One that talks to the demo identity service at `url`. It heeds proxies: set NO_PROXY before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # trivoreid 2.0.10 compares numbers with `is`
        from trivoreid.client import TrivoreID  # noqa: PLC0415 - the warnings come with the first import
    return TrivoreID(path="/nowhere", server=url, client_id="demo", client_secret="demo")
