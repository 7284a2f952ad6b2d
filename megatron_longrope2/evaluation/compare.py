"""Several checkpoints, or one with several factor files, measured in one job.

Each candidate's records go into a folder of its name. A job that was interrupted resumes: what was measured
with the same settings, after the checkpoint and the factor file were last written, is not measured again.
"""

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_longrope2.device import is_first_process
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.harness import measure_harness
from megatron_longrope2.evaluation.needle_grid import measure_needle
from megatron_longrope2.evaluation.perplexity import measure_perplexity
from megatron_longrope2.evaluation.records import Measured, as_json, read_records, write_record
from megatron_longrope2.evaluation.ruler import measure_ruler
from megatron_longrope2.evaluation.settings import CheckpointSettings, TextSettings
from megatron_longrope2.evaluation.subject import open_subject
from megatron_longrope2.files import read_json
from megatron_longrope2.model.settings import LayoutSettings

logger = logging.getLogger(__name__)

# From a record's kind to what measures it: a function of a subject, texts and the kind's settings.
MEASURES: dict[str, Any] = {
    "needle": measure_needle,
    "perplexity": measure_perplexity,
    "ruler": measure_ruler,
    "lm_eval": measure_harness,
}


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is measured under a name of its own.

    Attributes:
        name: of its row in the report and of its folder.
        checkpoint: where it is, and with which factors.
    """

    name: str
    checkpoint: CheckpointSettings

    @classmethod
    def parse(cls, text: str) -> "Candidate":
        """From NAME=CHECKPOINT or NAME=CHECKPOINT,FACTORS.

        Raises:
            InputError: it is something else, or the checkpoint is no folder.
        """
        name, separator, rest = text.partition("=")
        checkpoint, comma, factors = rest.partition(",")
        if not separator or not name or "/" in name or not checkpoint or (comma and not factors):
            raise InputError(f"{text}: not NAME=CHECKPOINT or NAME=CHECKPOINT,FACTORS; write it so")
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give a Megatron checkpoint or a Hugging Face one")
        kind = "hf_dir" if (folder / "config.json").exists() else "load"
        return cls(name, CheckpointSettings(**{kind: folder}, rope_factors=factors or None))

    def changed(self) -> float:
        """When the checkpoint or the factor file was last written, seconds since the epoch."""
        files = list(self.checkpoint.folder.iterdir())
        if self.checkpoint.rope_factors and Path(self.checkpoint.rope_factors).exists():
            files.append(Path(self.checkpoint.rope_factors))
        return max((file.stat().st_mtime for file in files), default=0.0)


def measure_candidates(
    candidates: Sequence[Candidate],
    layout: LayoutSettings,
    texts: TextSettings,
    measurements: Mapping[str, Any],
    folder: Path,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure all candidates; every process of a job calls it.

    Args:
        candidates: of different names.
        layout, texts: of every measurement.
        measurements: the settings of each, by its kind.
        folder: gets NAME/KIND.json.

    Returns:
        Name -> records, with those that were there before (such as `lm_eval`'s). Only in the process that
        writes; elsewhere nothing.

    Raises:
        InputError: two candidates have one name, there is none, or a measurement's own.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise InputError(f"compare: {', '.join(names) or 'no checkpoint'}: give each a name of its own")
    # Decided by every process before any of them writes.
    left = {
        candidate: [
            kind
            for kind, settings in measurements.items()
            if not _done(candidate, folder / candidate.name / f"{kind}.json", texts, settings)
        ]
        for candidate in candidates
    }
    for candidate, kinds in left.items():
        if not kinds:
            logger.warning("%s: measured before, in %s", candidate.name, folder / candidate.name)
            continue
        subject = open_subject(candidate.checkpoint, layout)
        for kind in kinds:
            measure_into(
                folder / candidate.name, kind, subject, candidate.checkpoint, texts, measurements[kind]
            )
        del subject
        gc.collect()
    return {name: read_records(folder / name) for name in names} if is_first_process() else {}


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
    asked = _asked(checkpoint, texts, settings)
    path = write_record(folder, kind, subject.about(), asked, measured, time.monotonic() - start)
    print(f"{measured.summary}\n{path}")
    return measured


def _asked(checkpoint: CheckpointSettings, texts: TextSettings, settings: Any) -> dict[str, Any]:
    """What the user asked for, as a record has it."""
    return as_json({"asked": asdict(checkpoint), "settings": {**asdict(texts), **asdict(settings)}})


def _done(candidate: Candidate, path: Path, texts: TextSettings, settings: Any) -> bool:
    """Whether the record is there, of the same checkpoint and settings, and younger than the checkpoint."""
    if not path.exists() or path.stat().st_mtime < candidate.changed():
        return False
    record = read_json(path)
    asked = _asked(candidate.checkpoint, texts, settings)
    return isinstance(record, dict) and {key: record.get(key) for key in asked} == asked
