"""Access to the page: people, tokens and proxies (`accounts`), and the door (`guard`)."""
