"""Read `inbox.toml`, and check its types, then the rules between its tables and presets."""
