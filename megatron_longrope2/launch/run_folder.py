"""What a chain's run folder says: what was submitted, and how each stage ended."""

from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json
from megatron_longrope2.launch.settings import Settings, load_settings

CHAIN, SETTINGS, REPORT = "chain.json", "settings.toml", "report.json"


def load_chain(run: Path) -> tuple[dict[str, Any], Settings]:
    """The record of a submitted chain and its settings.

    Raises:
        InputError: no chain was submitted there.
    """
    path = run / CHAIN
    if not path.exists():
        raise InputError(f"{path}: no such file; give the run folder of a chain that was submitted")
    chain = read_json(path)
    return chain, load_settings(run / SETTINGS, base=Path(chain["base"]))


def stage_report(run: Path, stage: str) -> dict[str, Any]:
    """The report on a stage's attempts (see `attempts.end`); empty before the first one has ended."""
    path = run / "stages" / stage / REPORT
    return read_json(path) if path.exists() else {}
