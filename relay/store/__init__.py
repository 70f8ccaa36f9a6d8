"""The relay's SQL: sequence, claim, record, replay, and reads for listings. The rules are pure functions elsewhere."""
