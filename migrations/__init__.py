"""The schema's history, run by `inbox migrate`. A released migration is never edited."""
