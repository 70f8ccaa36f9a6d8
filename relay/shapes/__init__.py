"""The shapes of payloads: reads the structure of a body, learns what a source usually sends, and finds changes. Pure."""
