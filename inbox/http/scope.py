"""Keys that the server sets in the ASGI scope of a request, or in the state of the app."""

CUT_SHORT = "inbox.cut_short"
"""Scope key: the reason why no more of the body will come."""

BODY_COMPLETE = "inbox.body_complete"
"""Scope key, set when the whole body is there: a deadline would cost more than reading."""

SEND_CONTINUE = "inbox.send_continue"
"""Scope key, set when the request expects `100-continue`: a function that asks the sender for the body."""

ON_STOP = "inbox.on_stop"
"""Scope key, set by the app for an answer without an end: a function that ends it. It is called when the worker stops."""

WHEN_GONE = "inbox.when_gone"
"""Scope key: a function that takes another, and calls it when the sender hangs up; at once where it has already."""

CAPACITY = "inbox.capacity"
"""App state key: the `inbox.http.limits.Capacity` of the process."""

METERS = "inbox.meters"
"""App state key: the `inbox.telemetry.metrics.Meters` of the process."""
