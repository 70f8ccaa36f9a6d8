"""`inbox doctor`: examines the database, the host, the configuration and the relays."""
