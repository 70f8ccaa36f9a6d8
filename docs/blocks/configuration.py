"""Every key of `inbox.toml`, from the classes of `inbox.config`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import inspect

from docs.blocks.common import extract_summary, find_added_meanings, format_list, format_table, read_field_docstrings
from inbox.config.model import Config, Downstream, Endpoint, Limited, Route
from inbox.config.sources import Source
from inbox.config.sync import CallKeys
from inbox.config.values import Address, Age, DatabaseUrl, Duration, Network, Rate, SchemaName, Secret, TopicArn
from relay.sync.forms import FORMS

_CUSTOM = {
    Address: "a host and a port",
    Age: "[age](#ages)",
    DatabaseUrl: "text",
    SchemaName: "text",
    Duration: "[duration](#durations)",
    Network: "address or network",
    Rate: "[rate](#rates)",
    Secret: "[secret](#secrets)",
    TopicArn: "ARN of a topic",
}


_SHARED: Mapping[type, str] = {
    Limited: "Endpoints",
    Endpoint: "HTTP endpoints",
    Downstream: "HTTP destinations",
    CallKeys: "Calls of a sync or sweep",
}
"""Classes of keys that several tables share, with their titles."""


def list_config_keys() -> str:
    """Describe every table of inbox.toml, each class of `inbox.config` once."""
    shared = (line for cls, title in _SHARED.items() for line in _describe_table(title, cls))
    return "\n".join([*_describe_tables((), Config, {}), *shared])


def _describe_tables(path: tuple[str, ...], cls: type, seen: dict[type, str]) -> Iterator[str]:
    kind = cls.__struct_config__.tag  # type: ignore[attr-defined]  # a msgspec class
    title = f"`[{'.'.join(path)}]`"
    seen[cls] = title = f'{title} with `kind = "{kind}"`' if kind else title
    if path:
        yield from _describe_table(title, cls)
    for field in inspect.type_info(cls).fields:  # type: ignore[attr-defined]  # a StructType
        for inner, name in _find_structs(field.type, field.encode_name):
            if inner not in seen:
                yield from _describe_tables((*path, *name), inner, seen)


def _find_structs(kind: inspect.Type, name: str) -> Iterator[tuple[type, tuple[str, ...]]]:
    """Yield the classes in a field's type, with the keys that lead to them."""
    match kind:
        case inspect.StructType(cls=cls):
            yield cls, (name,)
        case inspect.UnionType(types=types):
            for member in types:
                yield from _find_structs(member, name)
        case inspect.ListType(item_type=item):
            yield from _find_structs(item, name)
        case inspect.DictType(value_type=value):
            for cls, _ in _find_structs(value, name):
                yield cls, (name, "NAME")


def _describe_table(title: str, cls: type) -> Iterator[str]:
    bases = [base for base in _SHARED if issubclass(cls, base) and cls is not base]
    shared = {name for base in bases for name in (*read_field_docstrings(base), *find_added_meanings(base))}
    own_docs, added = read_field_docstrings(cls), find_added_meanings(cls)
    rows = []
    for field in inspect.type_info(cls).fields:  # type: ignore[attr-defined]  # a StructType
        name = field.name
        if name in shared or (name == "name" and issubclass(cls, Source | Limited | Route)):
            continue
        if cls in _SHARED and name not in {*own_docs, *added}:  # each table has its own meaning
            continue
        if (name in own_docs) == (name in added):
            raise SystemExit(f"{cls.__name__}.{name} needs a docstring in inbox/config, or a line in meanings.toml")
        meaning = own_docs.get(name) or added[name]
        rows.append((f"`{field.encode_name}` ({_describe_type(field.type)}{_describe_default(field)})", meaning))
    yield f"### {title}\n"
    links = [
        f"[{_uncapitalize(title)}](#{title.lower().replace(' ', '-')})" for title in map(_SHARED.__getitem__, bases)
    ]
    yield f"{extract_summary(cls.__doc__)}{f' Shares the keys of {_join_words(links)}:' if links else ''}\n"
    if rows:
        yield format_list(rows)


def _uncapitalize(title: str) -> str:
    return title if title.startswith("HTTP") else title[0].lower() + title[1:]


def _join_words(texts: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def list_template_forms() -> str:
    """Tabulate the meanings of a placeholder's `:NAME`."""
    rows = (
        (f"`{name}`", f"{form.meaning[0].upper()}{form.meaning[1:]}", f"`{form.example}`")
        for name, form in FORMS.items()
    )
    return format_table(("form", "writes", "example"), rows)


def _describe_type(kind: inspect.Type) -> str:
    words = "table"
    match kind:
        case inspect.StrType():
            words = "text"
        case inspect.BoolType():
            words = "true or false"
        case inspect.IntType(ge=low, le=high) | inspect.FloatType(ge=low, le=high):
            whole = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            words = _describe_range(whole, low, high)
        case inspect.LiteralType(values=values):
            words = _join_words([f'`"{value}"`' for value in values], "or")
        case inspect.CustomType(cls=cls):
            words = _CUSTOM[cls]
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            words = f"list of {_describe_type(item)}"
        case inspect.UnionType(types=types):
            words = " or ".join(dict.fromkeys(_describe_type(t) for t in types if not isinstance(t, inspect.NoneType)))
        case inspect.DictType(value_type=inspect.StrType() | inspect.LiteralType() | inspect.UnionType() as value):
            words = "table of texts and tables" if isinstance(value, inspect.UnionType) else "table of texts"
        case inspect.AnyType():
            words = "any"
        case _:
            pass
    return words


def _describe_range(kind: str, low: float | None, high: float | None) -> str:
    if low is None:
        return kind if high is None else f"{kind} up to {high}"
    return f"{kind} from {low} up" if high is None else f"{kind} from {low} to {high}"


def _describe_default(field: inspect.Field) -> str:
    if field.required:
        return ", required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else None
    if value is None or value == "" or isinstance(value, msgspec.Struct):  # 0 and false are defaults
        return ""
    if isinstance(value, bool):
        return f", default `{str(value).lower()}`"
    if isinstance(value, tuple):
        return f", default {' '.join(f'`{_format_duration(item)}`' for item in value)}"
    if isinstance(value, Age):
        return f", default `{value.shown}`"
    return f", default `{_format_duration(value) if isinstance(value, Duration) else value}`"


def _format_duration(seconds: float) -> str:
    hours, minutes = divmod(seconds, 3600)
    if hours and not minutes:
        return f"{hours:g}h"
    return f"{seconds / 60:g}m" if seconds >= 60 and seconds % 60 == 0 else f"{seconds:g}s"  # noqa: PLR2004  # a minute
