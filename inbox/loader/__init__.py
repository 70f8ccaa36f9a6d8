"""Reads `inbox.toml`: shape first, then the rules that its tables and presets must agree on."""
