"""The Falcon app: authenticates requests, stores them in groups, and answers. It alone writes the inbox for senders."""
