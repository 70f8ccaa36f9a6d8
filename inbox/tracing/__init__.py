"""Spans of sampled work, exported by OpenTelemetry where the configuration or the environment asks for it."""
