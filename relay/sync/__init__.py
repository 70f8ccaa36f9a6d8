"""Sync routes: builds the calls of fetch, find, map and patch, and reads their answers. Pure, but for importing your functions."""
