"""The receiver: takes webhooks in without ever losing one.

A 2xx answer means that the event is committed and fsynced in the `inbox` table. `relay` drains that table; this package
never imports it.
"""
