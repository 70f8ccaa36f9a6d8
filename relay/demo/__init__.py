"""Two services to try the product against: an identity service that sends webhooks, a commercial service kept in step.

Both are real HTTP services with their state in memory; only the `relay demo` commands import them.
"""
