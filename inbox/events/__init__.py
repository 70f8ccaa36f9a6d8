"""Values of an event: its fields, times, JSON and numbers. Pure; everything else may import it."""
