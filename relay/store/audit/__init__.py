"""Compares stored state with the state that follows from the log, and rebuilds it."""
