"""Access to the page: users, tokens, sessions and proxies, and the limits of requests from another site."""
