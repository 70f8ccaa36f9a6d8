"""Examinations of `inbox doctor`: what the database, the host and the configuration tell. The relay adds its own."""
