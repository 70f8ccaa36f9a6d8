"""Text for logs and terminals: escaped, masked, and without messages of exceptions."""
