"""Observability of both programs: logs, Prometheus metrics and OpenTelemetry traces."""
