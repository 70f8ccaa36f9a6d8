"""Values of an event and its deliveries: fields, states, times, JSON and numbers. Pure; everything else may import it."""
