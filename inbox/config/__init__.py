"""Values of `inbox.toml`, one class for each table. Pure: no file, no database, no HTTP and no clock."""
