"""Your own functions: found by `package.module:name` when the relay starts, and called with copies."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inbox.config.mistakes import nearest
from inbox.errors import BodyErased, ConfigError, MappingError
from inbox.loader.load import config_path

Function = Callable[..., object]


def function_of(place: str, where: str, takes: Sequence[str] = ("event",)) -> Function:
    """Import a function, and check that it takes these arguments. `where` names the key in errors.

    Its module is searched where Python searches, and then in the folder of `inbox.toml`: a file there can't replace an
    installed module.

    Raises:
        ConfigError: there is no such module, it can't be imported, or it has no such function.
    """
    folder = config_path().resolve().parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    module_name, _, path = place.partition(":")
    found: Any = _module(module_name, where, folder)
    for name in path.split("."):
        if not hasattr(found, name):
            there = [each for each in dir(found) if callable(getattr(found, each, None)) and not each.startswith("_")]
            file = getattr(found, "__file__", None) or module_name
            raise ConfigError(f"{where}: {file} has no {name!r}; {nearest(name, there)}")
        found = getattr(found, name)
    _check(found, place, where, takes)
    function: Function = found
    return function


class Hook:
    """A function for what a map can't express. It gets copies, so its changes to them have no effect elsewhere."""

    def __init__(self, reference: str, where: str, takes: Sequence[str]) -> None:
        self.reference = reference
        self.where = where
        self._function = function_of(reference, where, takes)

    def call(self, *arguments: object) -> Any:  # noqa: ANN401  # whatever it returns
        """Call it, and return its result.

        Raises:
            MappingError: it raised. The text names only the type of its error, whose own text may hold anything.
            BodyErased: it looks into the body of an event that has none any more.
        """
        try:
            return self._function(*copy.deepcopy(arguments))
        except BodyErased:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it does concerns this event alone
            raise MappingError(f"{self.reference} raised {type(error).__name__}", field=self.where) from None


def _module(name: str, where: str, folder: Path) -> object:
    importlib.invalidate_caches()  # the file may have been written after the folder was last looked at
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            file = f"{name.replace('.', '/')}.py"
            raise ConfigError(
                f"{where}: there is no module {name!r}; write {file} in {folder}, or install the package that has it"
            ) from None
        raise ConfigError(f"{where}: {name} imports {error.name!r}, which is not installed") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a module may do anything when it is imported
        # Without the error's text, which may hold anything that the module has read.
        raise ConfigError(
            f"{where}: {name} can't be imported: {type(error).__name__}; try python -c 'import {name}' in {folder}"
        ) from None


def _check(found: object, place: str, where: str, takes: Sequence[str]) -> None:
    if not callable(found):
        raise ConfigError(f"{where}: {place} is not a function, but of type {type(found).__name__}")
    for each in (found, getattr(found, "__call__", None)):  # noqa: B004  # an object's own, which may be async
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) or inspect.isgeneratorfunction(each):
            raise ConfigError(
                f"{where}: {place} does nothing when it is called, being async or a generator; write a plain def"
            )
    try:
        inspect.signature(found).bind(*takes)
    except TypeError:
        wanted = "one argument, the event" if len(takes) == 1 else f"{len(takes)} arguments: {', '.join(takes)}"
        raise ConfigError(f"{where}: {place} must take {wanted}") from None
    except ValueError:  # written in C: it has no signature
        pass
