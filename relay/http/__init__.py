"""HTTP calls to other systems: connections, limits, deadlines, responses and tokens. Independent of database and routes."""
