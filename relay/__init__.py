"""The relay: drains the inbox in order, calls downstream with retries, and appends every outcome to a log.

It builds on `inbox`, which has the tables, the configuration and the errors of both programs.
"""
