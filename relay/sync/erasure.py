"""Events whose body was erased: whatever looks into the body ends its attempt, and everything else works on. Pure."""

from __future__ import annotations

from typing import Any, NoReturn

from inbox.errors import BodyErased

_BODY = "body"


class ErasedEvent(dict[str, Any]):
    """The scope of such an event. An absent body would map to absent values, and clear fields of the counterpart."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  # any JSON value
        return self._erased() if name == _BODY else super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # any JSON value
        """Return a value, as `dict.get`; JMESPath reads with it."""
        return self._erased() if name == _BODY else super().get(name, default)

    def items(self) -> NoReturn:
        """Refuse: the body would be among them."""
        self._erased()

    def values(self) -> NoReturn:
        """Refuse: the body would be among them."""
        self._erased()

    def __deepcopy__(self, _memo: object) -> ErasedEvent:
        """Copy it, for a function of yours; its values are texts and numbers."""
        return ErasedEvent(dict.items(self))

    @staticmethod
    def _erased() -> NoReturn:
        raise BodyErased
