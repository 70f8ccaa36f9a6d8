"""Keys that our server sets in the ASGI scope of a request, or in the state of the app."""

CUT_SHORT = "inbox.cut_short"
"""In the scope, once no more of the body will come: the reason."""

WHOLE = "inbox.whole"
"""In the scope, when the whole body is there: nothing has to be waited for, and a deadline costs more than reading."""

GO_ON = "inbox.go_on"
"""In the scope, when the request expects `100-continue`: a function that asks the sender for the body."""

CAPACITY = "inbox.capacity"
"""In the app's state: the `inbox.http.limits.Capacity` that the server keeps to."""

METERS = "inbox.meters"
"""In the app's state: the `inbox.telemetry.metrics.Meters` of the process."""
