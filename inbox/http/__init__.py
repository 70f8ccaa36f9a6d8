"""Rules for connections, heads and bodies of requests, independent of resources and the database."""
