"""Fetch, find, map and patch: what each call holds and how its answer is read. Pure, but for importing your functions."""
