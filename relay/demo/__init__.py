"""Two services to try the product with: an identity service that sends webhooks, a commercial service kept in sync.

Both are real HTTP services with their state in memory; only the `relay demo` commands import them.
"""
