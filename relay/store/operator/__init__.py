"""Commands of operators, applied to deliveries in SQL: selection, replay, cancellation and reopening."""
