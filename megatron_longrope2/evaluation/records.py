"""Result files: what was measured, on what, how, and with which versions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json

FORMAT = "longrope2-evaluation/2"
KINDS = ("needle", "perplexity", "ruler", "lm_eval")
# A checkpoint's records by kind, as `read_records` gives them.
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What a measurement adds to its record.

    Attributes:
        result: the numbers.
        beyond: lengths outside the checkpoint's window, tokens.
        summary: a few lines for the screen.
    """

    result: dict[str, Any]
    beyond: list[int]
    summary: str


def as_json(value: Any) -> Any:
    """The value as a JSON file gives it back: tuples as lists, paths as strings."""
    return json.loads(json.dumps(value, default=str))


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records of a folder, by kind.

    Raises:
        InputError: there is none, or one is not ours.
    """
    records = {}
    for kind in KINDS:
        path = Path(folder) / f"{kind}.json"
        if not path.exists():
            continue
        record = read_json(path)
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("kind") != kind:
            raise InputError(f"{path}: format: not {FORMAT!r} of kind {kind!r}; measure it again")
        records[kind] = record
    if not records:
        names = ", ".join(f"{kind}.json" for kind in KINDS)
        raise InputError(f"{folder}: no results there ({names}); give a folder that an evaluation wrote")
    return records


def read_named(results: Sequence[str]) -> dict[str, Records]:
    """The records of several folders, by name.

    Args:
        results: NAME=DIR each.

    Raises:
        InputError: as `by_name` and `read_records`.
    """
    return {name: read_records(folder) for name, folder in by_name(results, "DIR").items()}


def by_name(pairs: Sequence[str], what: str) -> dict[str, str]:
    """What the user gave as NAME=WHAT, by name.

    Raises:
        InputError: a pair is something else, a name comes twice, or there is none.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or "/" in name or not value:
            raise InputError(f"{pair}: not NAME={what}; write the name that it is shown by, then {what}")
        if name in found:
            raise InputError(f"{pair}: {name} is given twice; give each checkpoint a name of its own")
        found[name] = value
    if not found:
        raise InputError(f"nothing to report; give at least one NAME={what}")
    return found
