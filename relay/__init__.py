"""The relay: drains the inbox in order, calls downstream with retries, and appends every outcome to a log.

It stands on `inbox`, which holds the tables, the configuration and the errors of both sides.
"""
