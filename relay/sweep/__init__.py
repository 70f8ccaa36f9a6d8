"""Sweeps: reads pages of changes from a source, and stores the events that no webhook has brought."""
