"""Who may use the page: users, tokens, sessions and proxies, and what a request from another site may not do."""
