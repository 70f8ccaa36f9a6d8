"""Migrations of the schema, run by `inbox migrate`. Released ones are never edited."""
