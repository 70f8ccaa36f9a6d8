"""The Falcon app, which authenticates requests, stores them in groups, and responds. Only it stores senders' events."""
