"""Rules for connections, heads and bodies of requests, below any resource. Nothing here knows the database."""
