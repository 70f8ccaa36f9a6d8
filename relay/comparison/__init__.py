"""Compares two configurations over stored events: shows what a new one would change. It writes nothing."""
