"""History of the schema, run by `inbox migrate`. A released migration is never edited."""
