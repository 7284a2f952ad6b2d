"""Options of the measurements and of the report; `--help` shows what their docstrings say."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt

from megatron_longrope2.data.settings import WordingName
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.options import options


@options("Checkpoint")
@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Which model is measured.

    Attributes:
        load: Folder of a Megatron checkpoint.
        hf_dir: Folder of a Hugging Face model, instead of --load.
        rope_factors: A factor file or the name of a published one, instead of the checkpoint's own factors.
    """

    load: Path | None = None
    hf_dir: Path | None = None
    rope_factors: str | None = None

    @property
    def folder(self) -> Path:
        """The one folder that was given.

        Raises:
            InputError: none was given, or both.
        """
        folder = self.load or self.hf_dir
        if folder is None or (self.load and self.hf_dir):
            raise InputError("--load: give either --load, a Megatron checkpoint, or --hf-dir, a model folder")
        return folder


@options("Texts")
@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What the measured texts are made of.

    Attributes:
        books: Texts that the model was not trained on: a .txt, a .jsonl (field `text`), or a folder of them.
            Only RULER can do without, by leaving out the tasks that hide their needles in books.
        seed: Seed of the samples.
    """

    books: Path | None = None
    seed: int = 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MeasurementSettings:
    """What a measurement is of.

    Attributes:
        output: Folder of the results.
    """

    output: Path
    checkpoint: CheckpointSettings = CheckpointSettings()
    layout: LayoutSettings = LayoutSettings()
    texts: TextSettings = TextSettings()


@options("Generation")
@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How much is generated at once; it does not change what is generated.

    Attributes:
        batch_size: Number of prompts that are continued at once. By default, as many as fit into the free
            memory on a Megatron checkpoint, and one on a Hugging Face folder, where it is also the number of
            documents that the harness scores at once.
        prefill_chunk: Number of tokens of a prompt that a Megatron model reads at once; the activations of
            longer ones take more memory.
    """

    batch_size: PositiveInt | None = None
    prefill_chunk: PositiveInt = 8192


@options("Needles")
@dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """A grid of needles.

    Attributes:
        lengths: Lengths of the samples, tokens.
        depths: Number of depths, evenly from the text's start to its end.
        repetitions: Samples at each length and depth.
        needle_wording: The sentences around the text: short ones, or those of RULER's single-number task, as
            the installed lm-evaluation-harness has them.
    """

    lengths: tuple[PositiveInt, ...]
    depths: PositiveInt = 10
    repetitions: PositiveInt = 10
    needle_wording: WordingName = "short"

    def __post_init__(self) -> None:
        _check_distinct(self.lengths)


@options("Perplexity")
@dataclass(frozen=True, kw_only=True)
class PerplexitySettings:
    """Perplexity of text, in three ways.

    Attributes:
        short_texts: Number of texts of the original length.
        long_texts: Number of long texts, whose perplexity is reported by position.
        long_length: Length of the long texts, tokens; by default the target length.
        windows: Lengths of sliding windows over whole books, tokens.
        stride: Tokens by which a sliding window moves on.
    """

    short_texts: NonNegativeInt = 100
    long_texts: NonNegativeInt = 10
    long_length: PositiveInt | None = None
    windows: tuple[PositiveInt, ...] = ()
    stride: PositiveInt = 256

    def __post_init__(self) -> None:
        if not (self.short_texts or self.long_texts or self.windows):
            raise InputError(
                "--short-texts: 0 short texts, 0 long ones and no window leave nothing to measure"
            )
        if self.long_length == 1:
            raise InputError("--long-length: 1 has no token to predict; use 2 or more")


@options("RULER")
@dataclass(frozen=True, kw_only=True)
class RulerSettings:
    """RULER, as lm-evaluation-harness defines it.

    Attributes:
        lengths: Lengths of the samples, prompt and answer together, tokens.
        tasks: Names of the tasks; by default all that --books, --questions and --allow-download make
            possible.
        questions: Folder of the files with the questions of the two question-answering tasks: SQuAD's
            dev-v2.0.json and HotpotQA's hotpot_dev_distractor_v1.json. Without it, and without
            --allow-download, averages are over eleven of the thirteen tasks, and say so.
        samples: Samples of each task at each length.
        allow_download: Let the harness download the data of its question-answering tasks and, without
            --books, the essays of its haystacks.
    """

    lengths: tuple[PositiveInt, ...]
    tasks: tuple[str, ...] | None = None
    questions: Path | None = None
    samples: PositiveInt = 100
    allow_download: bool = False

    def __post_init__(self) -> None:
        _check_distinct(self.lengths)


@options("Prompts")
@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Prompts to continue.

    Attributes:
        prompt: Texts to continue.
        prompt_file: Text files to continue.
        max_new_tokens: Number of tokens to generate.
    """

    prompt: tuple[str, ...] = ()
    prompt_file: tuple[Path, ...] = ()
    max_new_tokens: PositiveInt = 64

    def texts(self) -> list[str]:
        """All prompts.

        Raises:
            InputError: there is none, one is empty, or a file cannot be read.
        """
        texts = list(self.prompt)
        for path in self.prompt_file:
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
        if not texts or not all(texts):
            raise InputError("--prompt: nothing to continue; give --prompt TEXT or --prompt-file FILE")
        return texts


@options("lm-evaluation-harness")
@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """Tasks of lm-evaluation-harness and how they are run.

    Attributes:
        suite: The paper's short benchmarks.
        tasks: Names of tasks or groups of the harness, instead of --suite.
        shots: Number of solved examples in front of each question of --tasks; by default each task's own.
        metric: What a report shows of --tasks, by the harness's name, such as acc.
        max_length: Longest prompt with its answer, tokens; longer prompts lose their beginning. By default
            4096 for the short suite, else the target length.
        backend: What runs a Hugging Face folder.
        include_path: Folder of further task definitions.
        limit: Number of documents of each task; by default all.
        allow_download: Let the harness download what its tasks need; without it they find their data in the
            cache or fail.
    """

    suite: Literal["short"] | None = None
    tasks: tuple[str, ...] | None = None
    shots: NonNegativeInt | None = None
    metric: str | None = None
    max_length: PositiveInt | None = None
    backend: Literal["transformers", "vllm"] = "transformers"
    include_path: Path | None = None
    limit: PositiveInt | None = None
    allow_download: bool = False


@options("Report")
@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a report compares.

    Attributes:
        baseline: Name of the checkpoint before the extension, to show what was kept of it.
        reference: Name of the checkpoint that the others' needles are compared with, sample by sample; by
            default the baseline.
        ruler_threshold: RULER average that a length must reach to count as effective, percent. The default
            is RULER's bar, Llama2-7B at 4K (Hsieh et al. 2024, section 4).
        needle_threshold: Needle accuracy that a length must reach to count as effective, from 0 to 1.
    """

    baseline: str | None = None
    reference: str | None = None
    ruler_threshold: float = 85.6
    needle_threshold: float = 0.9

    def check(self, names: Collection[str]) -> None:
        """See that baseline and reference are among the names.

        Raises:
            InputError: one is not.
        """
        for role in ("baseline", "reference"):
            name = getattr(self, role)
            if name is not None and name not in names:
                raise InputError(f"--{role}: {name!r} is not one of {', '.join(names)}")


def _check_distinct(lengths: Sequence[int]) -> None:
    """A length given twice would count its samples twice, and its intervals would be too narrow."""
    for length in lengths:
        if lengths.count(length) > 1:
            raise InputError(f"--lengths: {length} is given twice; give each length once")
