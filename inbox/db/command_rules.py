"""Triggers that reject an invalid row of `relay_command` at once, with a sentence that says what would be right.

The rules come from `inbox.events.commands`, which the relay shares. Only `inbox.toml` knows the names of routes and the like:
a relay answers `refused` where one of them is wrong. A row that has ended is history, and is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from inbox.db.dialect import POSTGRES
from inbox.db.reasons import says_nothing
from inbox.events.commands import (
    BOUNDS,
    CANCELLED_BY_STATE,
    COMMANDS,
    ERASED,
    FLAGS,
    KEYS,
    MOST_REASON,
    MOST_SEQS,
    NO_DRY_RUN,
    OF_COMMANDS,
    OF_GATES,
    OPEN_COMMANDS,
    REPLAYED_BY_STATE,
    SELECTING,
    KeyType,
)

_FROZEN = ("id", "kind", "asked_by", "asked_at", "dry_run")
_ENDED_BY_RELAY = ("done", "failed", "refused")
_CANCEL = "UPDATE relay_command SET state = ''cancelled''"
_HAS_ENDED = "a command that has ended stays as it is: insert another one"


class CommandRule(msgspec.Struct, frozen=True):
    """A sentence, and the condition under which a row deserves it."""

    sentence: str
    condition: str
    given: str = "NULL"
    """An expression for the invalid value. Only Postgres can add it to the sentence."""


class _Fragments:
    """Conditions about the JSON object `NEW.selection`. The type of a key is checked before its value is looked at."""

    def __init__(self, dialect: str) -> None:
        self.dialect, self.is_postgres = dialect, dialect == POSTGRES
        self.true = "true" if self.is_postgres else "1"

    def has(self, key: str) -> str:
        return f"NEW.selection -> '{key}' IS NOT NULL" if self.is_postgres else f"{self._type(key)} IS NOT NULL"

    def is_true(self, key: str) -> str:
        if self.is_postgres:
            return f"coalesce(NEW.selection -> '{key}' = 'true', false)"
        return f"coalesce({self._type(key)} = 'true', 0)"

    def value(self, key: str) -> str:
        return f"NEW.selection ->> '{key}'" if self.is_postgres else f"NEW.selection ->> '$.{key}'"

    def keys_beyond(self, keys: Iterable[str]) -> str:
        known = _texts(keys)
        if self.is_postgres:
            return f"SELECT k.key FROM jsonb_object_keys(NEW.selection) AS k (key) WHERE k.key NOT IN ({known})"
        return f"SELECT k.key FROM json_each(NEW.selection) AS k WHERE k.key NOT IN ({known})"

    def number_of(self, keys: Iterable[str]) -> str:
        return " + ".join(f"CASE WHEN {self.has(key)} THEN 1 ELSE 0 END" for key in keys)

    def is_wrong(self, key: str, kind: KeyType) -> str:
        """Return the condition that the key is there, and its value has another type."""
        value, is_a = self.value(key), self._type(key)
        number, beyond = f"CAST({value} AS numeric)", f"NOT BETWEEN {kind.least} AND {kind.most}"
        items = f"SELECT 1 FROM jsonb_array_elements(NEW.selection -> '{key}') AS e (item)"
        items_sqlite = f"SELECT 1 FROM json_each(NEW.selection, '$.{key}') e"
        if kind.among:
            return f"{self.has(key)} AND coalesce({value} NOT IN ({_texts(kind.among)}), {self.true})"
        conditions = {
            "text": (f"{is_a} <> 'string' OR {value} = ''", f"{is_a} <> 'text' OR {value} = ''"),
            "flag": (f"{is_a} <> 'boolean'", f"{is_a} NOT IN ('true', 'false')"),
            "number": (
                f"CASE WHEN {is_a} <> 'number' OR {value} ~ '[.]' THEN true ELSE {number} {beyond} END",
                f"{is_a} <> 'integer' OR {value} {beyond}",
            ),
            "numbers": (
                f"""CASE WHEN {is_a} <> 'array' THEN true
            WHEN jsonb_array_length(NEW.selection -> '{key}') NOT BETWEEN 1 AND {MOST_SEQS} THEN true
            ELSE EXISTS ({items} WHERE CASE WHEN jsonb_typeof(e.item) <> 'number' OR e.item #>> '{{}}' ~ '[.]' THEN true
                ELSE CAST(e.item AS numeric) {beyond} END) END""",
                f"""{is_a} <> 'array' OR json_array_length(NEW.selection, '$.{key}') NOT BETWEEN 1 AND {MOST_SEQS}
            OR EXISTS ({items_sqlite} WHERE e.type <> 'integer' OR e.value {beyond})""",
            ),
            "texts": (
                f"CASE WHEN {is_a} <> 'array' THEN true ELSE EXISTS ({items} WHERE jsonb_typeof(e.item) <> 'string') END",
                f"{is_a} <> 'array' OR EXISTS ({items_sqlite} WHERE e.type <> 'text')",
            ),
            "time": (f"{is_a} <> 'string' OR {value} !~ '{_TIME}'", f"{is_a} <> 'text' OR NOT ({_sqlite_time(value)})"),
        }
        condition = conditions[kind.type][0 if self.is_postgres else 1]
        return f"{self.has(key)} AND ({condition})"

    def is_not_before(self, earlier: str, later: str) -> str:
        if self.is_postgres:
            return f"CAST({self.value(earlier)} AS timestamptz) >= CAST({self.value(later)} AS timestamptz)"
        return f"julianday(upper({self.value(earlier)})) >= julianday(upper({self.value(later)}))"

    def _type(self, key: str) -> str:
        return f"jsonb_typeof(NEW.selection -> '{key}')" if self.is_postgres else f"json_type(NEW.selection, '$.{key}')"


_TIME = "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"


def _sqlite_time(value: str) -> str:
    day, digits = f"substr({value}, 1, 10)", "[0-9][0-9]"
    shape = f"{digits}{digits}-{digits}-{digits}[Tt ][0-2][0-9]:[0-5][0-9]:[0-5][0-9]*"
    return (
        f"{value} GLOB '{shape}' AND ({value} GLOB '*[Zz]' OR {value} GLOB '*[+-][0-2][0-9]:[0-5][0-9]')"
        f" AND date({day}) IS {day} AND julianday(upper({value})) IS NOT NULL"
    )


_TYPES = {
    "text": "a text that is not empty",
    "texts": "a list of texts",
    "flag": "true or false",
    "time": "a time with an offset from UTC, such as 2026-01-31T10:00:00Z",
}


def _described(kind: KeyType) -> str:
    if kind.among:
        return f"one of {_listed(kind.among, 'or')}"
    number = f"whole number from {kind.least} to {kind.most}"
    if kind.type == "numbers":
        return f"a list of 1 to {MOST_SEQS} numbers, each a {number}"
    return f"a {number}" if kind.type == "number" else _TYPES[kind.type]


def _listed(names: Iterable[str], last: str = "and") -> str:
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _texts(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _of_row(json: _Fragments) -> Iterator[CommandRule]:
    """Yield the rules of all kinds, in their order: a later one may rely on those before it."""
    kinds = _texts(COMMANDS)
    yield CommandRule(
        f"there is no such kind of command; there are {_listed(COMMANDS)}", f"NEW.kind NOT IN ({kinds})", "NEW.kind"
    )
    yield CommandRule(
        "say why in reason, in letters or digits: it is kept with the command",
        says_nothing("NEW.reason", json.dialect),
    )
    yield CommandRule(
        f"a reason has at most {MOST_REASON} characters: every fact of the command repeats it",
        f"length(NEW.reason) > {MOST_REASON}",
    )
    if not json.is_postgres:  # which has booleans
        yield CommandRule("dry_run is true or false", "NEW.dry_run NOT IN (0, 1)")
        not_an_object = "CASE WHEN json_valid(NEW.selection) THEN json_type(NEW.selection) <> 'object' ELSE 1 END"
    else:
        not_an_object = "jsonb_typeof(NEW.selection) <> 'object'"
    yield CommandRule('selection is a JSON object, such as {"route": "crm"}', not_an_object)
    for kind, keys in COMMANDS.items():
        beyond = json.keys_beyond(keys)
        yield CommandRule(
            f"{_a(kind)} has no such key in its selection; its keys are {_listed(keys)}",
            f"NEW.kind = '{kind}' AND EXISTS ({beyond})",
            f"({beyond} LIMIT 1)",
        )
    for key, of_type in KEYS.items():
        yield CommandRule(f"{key} is {_described(of_type)}", json.is_wrong(key, of_type), json.value(key))


def _of_meaning(json: _Fragments) -> Iterator[CommandRule]:
    """Yield the rules about keys that need each other."""
    yield CommandRule("since is before until: exchange the two", json.is_not_before("since", "until"))
    for kind in SELECTING:
        conditions = [key for key in COMMANDS[kind] if key not in {*FLAGS, *BOUNDS}]
        yield CommandRule(
            f"{_a(kind)} without a condition is about everything that it could change: name one of {_listed(conditions, 'or')};"
            ' or, if all is meant, {"everything": true}',
            f"NEW.kind = '{kind}' AND {json.number_of(conditions)} = 0 AND NOT {json.is_true('everything')}",
        )
    gates = ("route", "destination", "api", "source")
    of_gates = f"NEW.kind IN ({_texts(OF_GATES)})"
    yield CommandRule(
        f"name one gate: {_listed(gates, 'or')}; an entity by its source, entity_type and entity_id",
        f"{of_gates} AND {json.number_of(gates)} <> 1",
    )
    entity = ("source", "entity_type", "entity_id")
    yield CommandRule(
        "an entity is named by its source, entity_type and entity_id",
        f"{of_gates} AND {json.number_of(entity[1:])} > 0 AND {json.number_of(entity)} <> 3",
    )
    yield CommandRule(
        "backfill is about one route, with everything that it ever took: name the route",
        f"{json.is_true('backfill')} AND NOT ({json.has('route')})",
    )
    yield CommandRule("name the source that is to be swept", f"NEW.kind = 'sweep' AND NOT ({json.has('source')})")
    yield CommandRule(
        "name the entity that is to be erased: source, entity_type and entity_id",
        f"NEW.kind = 'erase' AND {json.number_of(entity)} <> 3",
    )
    yield CommandRule(
        "name the command by its number: command",
        f"NEW.kind IN ({_texts(OF_COMMANDS)}) AND NOT ({json.has('command')})",
    )
    for kind, states in (("cancel", CANCELLED_BY_STATE), ("replay", REPLAYED_BY_STATE)):
        yield CommandRule(
            f"{_a(kind)} is about deliveries that are {_listed(states, 'or')}: no other state",
            f"NEW.kind = '{kind}' AND {json.has('state')} AND {json.value('state')} NOT IN ({_texts(states)})",
        )
    yield CommandRule(f"{_listed(NO_DRY_RUN)} have no dry run", f"NEW.kind IN ({_texts(NO_DRY_RUN)}) AND NEW.dry_run")


def _of_change(json: _Fragments) -> Iterator[CommandRule]:
    """Yield the rules of an UPDATE. Erasure may take texts out of a command that has ended, and nothing else."""
    is_open = f"NEW.state IN ({_texts(OPEN_COMMANDS)})"
    differs = "IS DISTINCT FROM" if json.is_postgres else "IS NOT"
    yield CommandRule(
        f"a command stays as it was asked: cancel it with {_CANCEL}, and insert another one",
        " OR ".join(f"NEW.{column} {differs} OLD.{column}" for column in _FROZEN)
        + f" OR ({is_open} AND (NEW.selection {differs} OLD.selection OR NEW.reason {differs} OLD.reason))",
    )
    yield CommandRule(
        f"only erasure may change a command that has ended: its reason becomes {ERASED}, and texts of its selection begin so",
        f"NEW.reason NOT IN (OLD.reason, '{ERASED}') OR NEW.selection {differs} OLD.selection AND ({_not_erased(json)})",
    )
    yield CommandRule(
        _HAS_ENDED,
        f"OLD.state NOT IN ({_texts(OPEN_COMMANDS)}) AND NEW.state <> OLD.state"
        " AND NOT (OLD.state = 'cancelled' AND NEW.state = 'running')",
    )
    yield CommandRule("a command that runs is not asked again", "OLD.state = 'running' AND NEW.state = 'asked'")
    # Operators may set the state alone, so nobody can make a command look done, or have another person's one go on.
    yield CommandRule(
        f"only a relay ends a command, with finished_at: stop it with {_CANCEL}",
        f"NEW.state IN ({_texts(_ENDED_BY_RELAY)}) AND NEW.state <> OLD.state AND NEW.finished_at IS NULL",
    )
    yield CommandRule(
        "relay resume --command with its id makes a stopped command go on",
        f"OLD.state = 'cancelled' AND {is_open} AND NEW.finished_at IS NOT NULL",
    )


def _not_erased(json: _Fragments) -> str:
    erased = f"substr(n.value, 1, {len(ERASED)}) = '{ERASED}'"
    if json.is_postgres:
        other = f"n.value IS DISTINCT FROM OLD.selection ->> n.key AND NOT {erased}"
        return (
            f"EXISTS (SELECT 1 FROM jsonb_each_text(NEW.selection) AS n (key, value) WHERE {other})"
            " OR (SELECT array_agg(k.key) FROM jsonb_object_keys(NEW.selection) AS k (key))"
            " IS DISTINCT FROM (SELECT array_agg(k.key) FROM jsonb_object_keys(OLD.selection) AS k (key))"
        )
    other = f"n.value IS NOT json_extract(OLD.selection, n.fullkey) AND NOT {erased}"
    return (
        f"EXISTS (SELECT 1 FROM json_each(NEW.selection) n WHERE {other})"
        " OR (SELECT json_group_array(k.key) FROM (SELECT key FROM json_each(NEW.selection) ORDER BY key) k)"
        " IS NOT (SELECT json_group_array(k.key) FROM (SELECT key FROM json_each(OLD.selection) ORDER BY key) k)"
    )


_NEWEST = """CASE NEW.kind WHEN 'readmit' THEN (SELECT coalesce(max(id), 0) FROM rejected_request)
    ELSE (SELECT coalesce(max(seq), 0) FROM inbox) END"""
"""The newest event or rejected request that a command is about."""
_STAYS = f"an open command can''t be deleted: cancel it first with {_CANCEL}"
_BY_HAND = "cancelled by hand"


def statements(dialect: str) -> tuple[str, ...]:
    """List the statements that make the triggers."""
    json = _Fragments(dialect)
    if not json.is_postgres:
        return tuple(_sqlite(json))
    return _postgres(json)


def _postgres(json: _Fragments) -> tuple[str, ...]:
    is_open = f"NEW.state IN ({_texts(OPEN_COMMANDS)})"
    function = f"""
CREATE FUNCTION relay_command_is_valid() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.state IN ({_texts(OPEN_COMMANDS)}) THEN
            RAISE EXCEPTION USING MESSAGE = '{_STAYS}', ERRCODE = 'restrict_violation';
        END IF;
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        {_raised(_of_change(json), "        ")}
        IF OLD.state IN ({_texts(OPEN_COMMANDS)}) AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL THEN
            NEW.finished_at := clock_timestamp();
            NEW.answer := coalesce(NEW.answer, '{_BY_HAND}');
        END IF;
        RETURN NEW;
    END IF;
    IF NOT ({is_open}) THEN
        RETURN NEW;
    END IF;
    {_raised(_of_row(json), "    ")}
    BEGIN
        PERFORM CAST(NEW.selection ->> 'since' AS timestamptz), CAST(NEW.selection ->> 'until' AS timestamptz);
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION USING MESSAGE = 'since and until are {_TYPES["time"]}', ERRCODE = 'check_violation';
    END;
    {_raised(_of_meaning(json), "    ")}
    NEW.until_seq := coalesce(NEW.until_seq, {_NEWEST});
    RETURN NEW;
END $$
"""
    trigger = """
CREATE TRIGGER relay_command_is_valid BEFORE INSERT OR UPDATE OR DELETE ON relay_command
    FOR EACH ROW EXECUTE FUNCTION relay_command_is_valid()
"""
    return function, "REVOKE ALL ON FUNCTION relay_command_is_valid() FROM PUBLIC", trigger


def _raised(rules: Iterable[CommandRule], indent: str) -> str:
    # In parentheses, as PL/pgSQL would end a condition at the THEN of a CASE.
    return f"\n{indent}".join(
        f"IF ({rule.condition}) THEN\n{indent}    RAISE EXCEPTION USING MESSAGE = '{rule.sentence}'"
        f"{_detail(rule)}, ERRCODE = 'check_violation';\n{indent}END IF;"
        for rule in rules
    )


def _detail(rule: CommandRule) -> str:
    return "" if rule.given == "NULL" else f", DETAIL = 'given: ' || coalesce(left({rule.given}, 100), 'null')"


def _sqlite(json: _Fragments) -> Iterator[str]:
    is_open = f"state IN ({_texts(OPEN_COMMANDS)})"
    yield f"""
CREATE TRIGGER relay_command_refuses_insert BEFORE INSERT ON relay_command
WHEN NEW.{is_open}
BEGIN
{_selected((*_of_row(json), *_of_meaning(json)))}
END
"""
    yield f"""
CREATE TRIGGER relay_command_is_bounded AFTER INSERT ON relay_command
WHEN NEW.{is_open} AND NEW.until_seq IS NULL
BEGIN
    UPDATE relay_command SET until_seq = {_NEWEST} WHERE id = NEW.id;
END
"""
    yield f"""
CREATE TRIGGER relay_command_refuses_update BEFORE UPDATE ON relay_command
BEGIN
{_selected(_of_change(json))}
END
"""
    yield f"""
CREATE TRIGGER relay_command_is_cancelled AFTER UPDATE OF state ON relay_command
WHEN OLD.{is_open} AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL
BEGIN
    UPDATE relay_command SET finished_at = strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z',
        answer = coalesce(answer, '{_BY_HAND}')
    WHERE id = NEW.id;
END
"""
    yield f"""
CREATE TRIGGER relay_command_refuses_delete BEFORE DELETE ON relay_command
WHEN OLD.{is_open}
BEGIN
    SELECT RAISE(ABORT, '{_STAYS}');
END
"""


def _selected(rules: Iterable[CommandRule]) -> str:
    return "\n".join(f"    SELECT RAISE(ABORT, '{rule.sentence}') WHERE {rule.condition};" for rule in rules)
