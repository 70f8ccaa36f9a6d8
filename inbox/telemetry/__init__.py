"""Prometheus metrics of both sides: their names, their recording, and the process that serves them."""
