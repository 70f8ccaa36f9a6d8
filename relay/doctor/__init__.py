"""Examinations of `inbox doctor`: what the database, the host, the configuration and the relays tell."""
