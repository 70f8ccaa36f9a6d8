"""Two demo services: an identity service that sends webhooks, and a commercial service that is kept in sync.

Both are real HTTP services with their state in memory; only the `relay demo` commands import them.
"""
