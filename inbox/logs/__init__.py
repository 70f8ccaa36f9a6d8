"""Text for logs and terminals: escaped, masked, and without the messages of exceptions."""
