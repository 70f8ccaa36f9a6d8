"""The `inbox` command: one file per group of commands, and the output that both commands share."""
