"""Functions of yours that a map names: imported at the start, called for each event."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from inbox.errors import MappingError
from relay.importing import function_of


class Hook:
    """A function that says what a map can't. It is given copies: what it does to them, nobody else sees."""

    def __init__(self, reference: str, where: str, takes: Sequence[str]) -> None:
        self.reference = reference
        self.where = where
        self._function = function_of(reference, where, takes)

    def call(self, *arguments: object) -> Any:  # noqa: ANN401  # whatever it returns
        """What it returns.

        Raises:
            MappingError: it raised. Of its error only the type is told: the text may hold anything.
        """
        try:
            return self._function(*copy.deepcopy(arguments))
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it does concerns this event alone
            raise MappingError(f"{self.reference} raised {type(error).__name__}", field=self.where) from None
