"""The `relay` command: one file per group of commands. It calls the packages below and holds no rules."""
