"""Runs the `relay` command line for `python -m relay`."""

from __future__ import annotations

from relay.cli.main import main

if __name__ == "__main__":
    main()
