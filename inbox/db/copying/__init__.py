"""The copy of a whole installation into another database: tables, values, both ends, and the comparison of the two."""
