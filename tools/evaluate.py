"""Measure a model: needles, perplexity, RULER, lm-evaluation-harness; generate; report side by side."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.settings import (
    CheckpointSettings,
    GenerationSettings,
    HarnessSettings,
    MeasurementSettings,
    NeedleSettings,
    PerplexitySettings,
    PromptSettings,
    ReportSettings,
    RulerSettings,
    TextSettings,
)
from megatron_longrope2.model.settings import LayoutSettings

main = App(name="evaluate", help=__doc__)


@main.command
def needle(*, what: MeasurementSettings, settings: NeedleSettings) -> None:
    """Find needles in haystacks, over lengths and depths; writes a heat map too."""
    from megatron_longrope2.evaluation.needle_grid import NeedleGrid
    from megatron_longrope2.evaluation.plots import plot_needles

    measured = _measure("needle", what, settings)
    if measured is not None:
        title = what.checkpoint.folder.name
        plot_needles({title: NeedleGrid.from_dict(measured.result)}, what.output / "needle.png")


@main.command
def perplexity(*, what: MeasurementSettings, settings: PerplexitySettings = PerplexitySettings()) -> None:
    """Perplexity of texts in the original window, of long ones by position, and by sliding windows."""
    _measure("perplexity", what, settings)


@main.command
def ruler(
    *,
    what: MeasurementSettings,
    generation: GenerationSettings = GenerationSettings(),
    settings: RulerSettings,
) -> None:
    """RULER's tasks over lengths (needs the `eval` extra)."""
    _measure("ruler", what, settings, generation)


@main.command
def lm_eval(
    *,
    checkpoint: CheckpointSettings = CheckpointSettings(),
    layout: LayoutSettings = LayoutSettings(),
    generation: GenerationSettings = GenerationSettings(),
    settings: HarnessSettings = HarnessSettings(),
    output: Path,
) -> None:
    """Tasks of lm-evaluation-harness (needs the `eval` extra).

    Args:
        output: Folder of the results.
    """
    from megatron_longrope2.evaluation.compare import measure_into
    from megatron_longrope2.evaluation.harness import open_for_harness

    subject = open_for_harness(checkpoint, layout, generation, settings)
    measure_into(output, "lm_eval", subject, checkpoint, TextSettings(), settings)


@main.command
def generate(
    *,
    checkpoint: CheckpointSettings = CheckpointSettings(),
    layout: LayoutSettings = LayoutSettings(),
    generation: GenerationSettings = GenerationSettings(),
    settings: PromptSettings = PromptSettings(),
) -> None:
    """Continue prompts, in both windows."""
    from megatron_longrope2.device import is_first_process
    from megatron_longrope2.evaluation.subject import open_subject

    texts = settings.texts()
    subject = open_subject(checkpoint, layout, generation)
    prompts = [subject.tokenizer(text, verbose=False)["input_ids"] for text in texts]
    subject.beyond_window([max(map(len, prompts)) + settings.max_new_tokens])
    for text, answer in zip(texts, subject.generate(prompts, settings.max_new_tokens), strict=True):
        if is_first_process():
            shown = text if len(text) <= 200 else f"...{text[-200:]}"
            print(f"{shown}[{subject.tokenizer.decode(answer)}]\n")


@main.command
def compare(
    *candidates: str,
    layout: LayoutSettings = LayoutSettings(),
    generation: GenerationSettings = GenerationSettings(),
    texts: TextSettings = TextSettings(),
    needle: Annotated[NeedleSettings | None, Parameter(name="needle")] = None,
    perplexity: Annotated[PerplexitySettings | None, Parameter(name="perplexity")] = None,
    ruler: Annotated[RulerSettings | None, Parameter(name="ruler")] = None,
    report: ReportSettings = ReportSettings(),
    output: Path,
) -> None:
    """Measure checkpoints and factor files, then report them side by side.

    Measured is whatever an option is given for: needles, perplexity, RULER.

    Args:
        candidates: NAME=CHECKPOINT or NAME=CHECKPOINT,FACTORS: the name of its row in the report, the folder
            of a Megatron or Hugging Face checkpoint, and a factor file or published name to use instead of
            the checkpoint's own factors.
        output: Folder of the report, and of a folder with the results for each name.
    """
    from megatron_longrope2.evaluation.compare import measure_candidates, parse_candidates

    parsed = parse_candidates(candidates)
    report.check(parsed)
    given = {"needle": needle, "perplexity": perplexity, "ruler": ruler}
    measurements = {kind: settings for kind, settings in given.items() if settings}
    if not measurements:
        raise InputError(
            "nothing to measure; give --needle.lengths, --perplexity.short-texts or --ruler.lengths"
        )
    checkpoints = measure_candidates(parsed, layout, generation, texts, measurements, output)
    if checkpoints:
        _report(checkpoints, report, output)


@main.command
def report(*results: str, settings: ReportSettings = ReportSettings(), output: Path) -> None:
    """Report results that are there, side by side.

    Args:
        results: NAME=DIR: the name that a checkpoint is shown by, and the folder of its results.
        output: Folder of the report.
    """
    from megatron_longrope2.evaluation.records import read_named

    _report(read_named(results), settings, output)


def _measure(
    kind: str,
    what: MeasurementSettings,
    settings: Any,
    generation: GenerationSettings = GenerationSettings(),
) -> Any:
    from megatron_longrope2.evaluation.compare import measure_into
    from megatron_longrope2.evaluation.subject import open_subject

    subject = open_subject(what.checkpoint, what.layout, generation)
    return measure_into(what.output, kind, subject, what.checkpoint, what.texts, settings)


def _report(checkpoints: Mapping[str, Any], settings: ReportSettings, output: Path) -> None:
    from megatron_longrope2.evaluation.report import build_report, write_report

    paths = write_report(build_report(checkpoints, settings), checkpoints, output)
    print((output / "report.md").read_text(encoding="utf-8"))
    print(*paths, sep="\n", file=sys.stderr)
