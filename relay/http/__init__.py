"""HTTP calls to other systems: connections, limits, deadlines, answers and tokens. It knows neither database nor routes."""
