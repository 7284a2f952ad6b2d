"""TOML tables read into dataclasses: every key known, every value of the right type."""

import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError


def read_table[T](kind: type[T], table: Any, where: str, base: Path) -> T:
    """Make a dataclass of a table.

    Args:
        kind: its fields are the keys; those without a default are required. Types: str, int, Path (relative
            to `base`), tuple[str, ...], and each of them or None.
        where: the file and the table, for messages.

    Raises:
        InputError: a key that is unknown (with the nearest known one), missing, or of another type.
    """
    if not isinstance(table, dict):
        raise InputError(f"{where}: is not a table; write it as [{where.split(': ')[-1]}]")
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    check_keys(table, known, where)
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}: {name}: is missing")
    hints = typing.get_type_hints(kind)
    return kind(
        **{name: _value(hints[name], value, f"{where}: {name}", base) for name, value in table.items()}
    )


def check_keys(table: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not known, naming the nearest one that is."""
    known = list(known)
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"{where}: {name}: unknown key; {hint}")


def _value(hint: Any, value: Any, where: str, base: Path) -> Any:
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    if isinstance(hint, types.UnionType):
        hint = options[0]
    if hint is Path and isinstance(value, str) and value:
        return (base / Path(value).expanduser()).resolve()
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise InputError(f"{where}: {value!r} is not a list of strings")
    if hint in (str, int) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    wanted = {str: "a string", int: "a whole number", Path: "a path"}[hint]
    raise InputError(f"{where}: {value!r} is not {wanted}")
