"""Watches both programs: log lines, metrics for Prometheus, and traces by OpenTelemetry."""
