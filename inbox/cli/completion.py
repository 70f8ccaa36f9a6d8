"""Completes the names that inbox.toml defines, for the shell. A file that can't be read completes nothing."""

from __future__ import annotations

from collections.abc import Callable


def names_of(table: str) -> Callable[[str], list[str]]:
    """Return a completion of the names in a table of the file, such as `routes`.

    Only the file's text is read: no secret, no function and no database is needed, so that completion always answers.
    """

    def complete(incomplete: str) -> list[str]:
        import tomllib

        from inbox.loader.load import config_path

        try:
            named = tomllib.loads(config_path().read_text(encoding="utf-8")).get(table)
        except (OSError, ValueError, RecursionError):
            return []
        names = named if isinstance(named, dict) else {}
        return sorted(name for name in names if name.startswith(incomplete) and name.isprintable())

    return complete
