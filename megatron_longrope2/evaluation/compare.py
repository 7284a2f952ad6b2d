"""Several checkpoints, or one with several factor files, measured in one job.

Each candidate's records go into a folder of its name. A job that was interrupted resumes: what was measured
with the same settings, after the checkpoint and the factor file were last written, is not measured again.
"""

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_longrope2.device import is_first_process
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.harness import measure_harness
from megatron_longrope2.evaluation.needle_grid import measure_needle
from megatron_longrope2.evaluation.perplexity import measure_perplexity
from megatron_longrope2.evaluation.records import FORMAT, Measured, as_json, by_name, read_records
from megatron_longrope2.evaluation.ruler import measure_ruler
from megatron_longrope2.evaluation.settings import CheckpointSettings, GenerationSettings, TextSettings
from megatron_longrope2.evaluation.subject import open_subject
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.provenance import provenance

logger = logging.getLogger(__name__)

# From a record's kind to what measures it: a function of a subject, texts and the kind's settings.
MEASURES: dict[str, Any] = {
    "needle": measure_needle,
    "perplexity": measure_perplexity,
    "ruler": measure_ruler,
    "lm_eval": measure_harness,
}


def parse_candidates(candidates: Sequence[str]) -> dict[str, CheckpointSettings]:
    """Checkpoints by name.

    Args:
        candidates: NAME=CHECKPOINT or NAME=CHECKPOINT,FACTORS each.

    Raises:
        InputError: a checkpoint is no folder, or as `by_name`.
    """
    parsed = {}
    for name, given in by_name(candidates, "CHECKPOINT[,FACTORS]").items():
        checkpoint, comma, factors = given.partition(",")
        folder = Path(checkpoint)
        if comma and not factors:
            raise InputError(f"{name}={given}: no factor file after the comma; name one or leave it out")
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give a Megatron checkpoint or a Hugging Face one")
        kind = "hf_dir" if (folder / "config.json").exists() else "load"
        parsed[name] = CheckpointSettings(**{kind: folder}, rope_factors=factors or None)
    return parsed


def measure_candidates(
    candidates: Mapping[str, CheckpointSettings],
    layout: LayoutSettings,
    generation: GenerationSettings,
    texts: TextSettings,
    measurements: Mapping[str, Any],
    folder: Path,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure all candidates; every process of a job calls it.

    Args:
        candidates: from `parse_candidates`.
        layout, generation, texts: of every measurement.
        measurements: the settings of each, by its kind.
        folder: gets NAME/KIND.json.

    Returns:
        Name -> records, with those that were there before (such as `lm_eval`'s). Only in the process that
        writes; elsewhere nothing.

    Raises:
        InputError: a measurement's own.
    """
    # Decided by every process before any of them writes.
    left = {
        name: [
            kind
            for kind, settings in measurements.items()
            if not _done(folder / name / f"{kind}.json", checkpoint, texts, settings)
        ]
        for name, checkpoint in candidates.items()
    }
    for name, checkpoint in candidates.items():
        if not left[name]:
            logger.warning("%s: measured before, in %s", name, folder / name)
            continue
        subject = open_subject(checkpoint, layout, generation)
        for kind in left[name]:
            measure_into(folder / name, kind, subject, checkpoint, texts, measurements[kind])
        del subject
        gc.collect()
    return {name: read_records(folder / name) for name in candidates} if is_first_process() else {}


def measure_into(
    folder: Path, kind: str, subject: Any, checkpoint: CheckpointSettings, texts: TextSettings, settings: Any
) -> Measured | None:
    """Measure, write the record and print the summary; None where another process writes.

    Args:
        folder: gets KIND.json.
        kind: of MEASURES.
        subject: what `checkpoint` opened.
        texts, settings: what is measured.
    """
    start = time.monotonic()
    measured: Measured = MEASURES[kind](subject, texts, settings)
    if not is_first_process():
        return None
    about = {"format": FORMAT, "kind": kind, **subject.about(), "beyond_window": measured.beyond}
    about |= {**_asked(checkpoint, texts, settings), "seconds": time.monotonic() - start, **provenance()}
    write_json(folder / f"{kind}.json", {**about, "result": measured.result})
    print(f"{measured.summary}\n{folder / f'{kind}.json'}")
    return measured


def _asked(checkpoint: CheckpointSettings, texts: TextSettings, settings: Any) -> dict[str, Any]:
    """What the user asked for, as a record has it."""
    return as_json({"asked": asdict(checkpoint), "settings": {**asdict(texts), **asdict(settings)}})


def _done(path: Path, checkpoint: CheckpointSettings, texts: TextSettings, settings: Any) -> bool:
    """Whether the record is there, of the same checkpoint and settings, and younger than the checkpoint."""
    files = [*checkpoint.folder.iterdir(), *(Path(name) for name in [checkpoint.rope_factors] if name)]
    changed = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    if not path.exists() or path.stat().st_mtime < changed:
        return False
    record = read_json(path)
    asked = _asked(checkpoint, texts, settings)
    return isinstance(record, dict) and {key: record.get(key) for key in asked} == asked
