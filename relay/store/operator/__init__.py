"""Operators' commands in SQL: selections, plans, and the steps of each kind."""
