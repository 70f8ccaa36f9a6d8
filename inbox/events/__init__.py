"""Values of events and deliveries: fields, states, times, JSON and numbers. Pure; all other packages may import it."""
