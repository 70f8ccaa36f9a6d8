"""Delivery rules: facts, states, ordering, retries, breakers and alerts. Pure: no database, no HTTP, no clock."""
