"""Blocks that `docs/generate.py` writes, page by page."""
