"""Sweeps: reads pages of changes from a source, and stores events for the changes without a webhook."""
