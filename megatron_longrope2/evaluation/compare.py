"""Several checkpoints, or one under several factor files, measured in one job and reported side by side.

Each candidate's records go into a folder of its name. A job that was cut off goes on: what was measured with
the same settings, after the checkpoint and the factor file were last written, is not measured again.
"""

import gc
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.measure import Measured
from megatron_longrope2.evaluation.records import describe, read_records, write_record
from megatron_longrope2.evaluation.subject import Subject
from megatron_longrope2.files import read_json

logger = logging.getLogger(__name__)

Measurement = tuple[Callable[..., Measured], Mapping[str, Any]]
"""A function of `measure` and its options."""


@dataclass(frozen=True)
class Candidate:
    """What is measured under a name.

    Attributes:
        name: of its row in the report and of its folder.
        checkpoint: folder of a Megatron checkpoint or a Hugging Face model.
        rope_factors: factor file or published name; None: the checkpoint's own.
    """

    name: str
    checkpoint: str
    rope_factors: str | None = None

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
        if not Path(checkpoint).is_dir():
            raise InputError(
                f"{checkpoint}: no such folder; give a Megatron checkpoint or a Hugging Face one"
            )
        return cls(name, checkpoint, factors or None)

    @property
    def is_hf(self) -> bool:
        """Whether the checkpoint is Hugging Face's."""
        return (Path(self.checkpoint) / "config.json").exists()

    def changed(self) -> float:
        """When the checkpoint or the factor file was last written, seconds since the epoch."""
        files = list(Path(self.checkpoint).iterdir())
        if self.rope_factors and Path(self.rope_factors).exists():
            files.append(Path(self.rope_factors))
        return max((file.stat().st_mtime for file in files), default=0.0)


def measure_candidates(
    candidates: Sequence[Candidate],
    measurements: Mapping[str, Measurement],
    folder: Path,
    open_subject: Callable[[Candidate], Subject],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure all candidates; every process of a job calls it.

    Args:
        candidates: of different names.
        measurements: by the record's kind.
        folder: gets NAME/KIND.json.
        open_subject: loads a candidate; the one before is forgotten by then.

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
        candidate: [kind for kind, one in measurements.items() if not _done(candidate, kind, one, folder)]
        for candidate in candidates
    }
    for candidate, kinds in left.items():
        if not kinds:
            logger.warning("%s: measured before, in %s", candidate.name, folder / candidate.name)
            continue
        subject = open_subject(candidate)
        for kind in kinds:
            measure, options = measurements[kind]
            measure_into(folder / candidate.name, kind, subject, measure, options, asdict(candidate))
        del subject
        gc.collect()
    if os.environ.get("RANK", "0") != "0":
        return {}
    return {name: read_records(folder / name) for name in names}


def measure_into(
    folder: Path,
    kind: str,
    subject: Subject,
    measure: Callable[..., Measured],
    options: Mapping[str, Any],
    candidate: Mapping[str, Any] | None = None,
) -> Measured | None:
    """Measure with the options, write the record and print the summary; None where another process writes."""
    start = time.monotonic()
    measured = measure(subject, **options)
    if not subject.writes:
        return None
    about = {**describe(subject, measured.beyond), "asked": _asked(candidate, options)}
    path = write_record(folder, kind, about, measured.settings, measured.result, time.monotonic() - start)
    print(f"{measured.summary}\n{path}")
    return measured


def _asked(candidate: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave, as JSON has it."""
    plain = {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in options.items()
    }
    return {"candidate": None if candidate is None else dict(candidate), "options": plain}


def _done(candidate: Candidate, kind: str, measurement: Measurement, folder: Path) -> bool:
    """Whether the record is there, of the same candidate and options, and younger than the checkpoint."""
    path = folder / candidate.name / f"{kind}.json"
    if not path.exists() or path.stat().st_mtime < candidate.changed():
        return False
    record = read_json(path)
    return isinstance(record, dict) and record.get("asked") == _asked(asdict(candidate), measurement[1])
