"""The relay's SQL: sequence, claim, record, replay, and what listings read. Nothing here decides; the pure files do."""
