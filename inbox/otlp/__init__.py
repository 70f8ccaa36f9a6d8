"""Common parts of traces and metrics by OpenTelemetry. Only `exporters` imports the SDK."""
