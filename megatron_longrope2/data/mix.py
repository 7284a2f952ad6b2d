"""A mix: which sources a run reads, and how many tokens of which document length from each.

The YAML file names sources and token budgets:

    long_buckets: [100000, 200000]  # upper ends in tokens; the short bucket ends at the original length
    shares: [2, 3, 4]               # short, then each long bucket; for all sources
    repeat: false                   # may a bucket be read more than once? (default false)
    sources:
      - name: books                 # a folder of this name is made in the output
        path: corpora/books         # relative to <input>; default: the name
        tokens: 4.5B                # K, M, B are powers of 1000
        text_field: text            # default
        shares: [1, 0, 0]           # this source's own; default: those for all
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil, gcd
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, model_validator

from megatron_longrope2.data.manifest import Manifest, Pool, PoolMix, check_pool_tokenizer, load_manifest
from megatron_longrope2.data.preprocess import load_encoder_once, preprocess, shards_folder
from megatron_longrope2.data.selection import Selection
from megatron_longrope2.data.settings import Bucket, PreprocessSettings
from megatron_longrope2.data.survey import Survey, Tokens, survey
from megatron_longrope2.device import is_first_process
from megatron_longrope2.errors import InputError, naming, one_line
from megatron_longrope2.files import read_text, write_json
from megatron_longrope2.tables import text_table

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_WEIGHT_STEPS = 10**6

# A bucket is full at this many times its budget: a run reads whole segments, in a pattern over the pools, and
# may end a few segments above its share of one.
_SPARE = 1.01


def _token_count(raw: Any) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMBT]?)", str(raw))
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 1:
        raise ValueError(f"{raw!r} is not a number of tokens such as 300000000, 300M or 4.5B")
    return count


class Source(BaseModel, extra="forbid", strict=True, frozen=True):
    """A source as the mix file states it; the module's docstring explains the fields."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    tokens: Annotated[int, BeforeValidator(_token_count)]
    path: str = ""
    text_field: str = "text"
    shares: list[NonNegativeInt] = []

    def settings(self, mix: "Mix", settings: PreprocessSettings) -> PreprocessSettings:
        """How this source is preprocessed, where `settings` are those of the whole mix."""
        return replace(
            settings,
            input=settings.input / (self.path or self.name),
            output=settings.output / self.name,
            long_buckets=tuple(mix.long_buckets),
            text_field=self.text_field,
            allow_empty_buckets=True,
        )


class Mix(BaseModel, extra="forbid", strict=True, frozen=True):
    """The content of a mix file."""

    long_buckets: list[NonNegativeInt]
    sources: Annotated[list[Source], Field(min_length=1)]
    shares: list[NonNegativeInt] = []
    repeat: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Mix":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources: a name occurs twice among {', '.join(names)}; rename one")
        buckets = 1 + len(self.long_buckets)
        for source in self.sources:
            shares = source.shares or self.shares
            if len(shares) != buckets or not sum(shares):
                raise ValueError(
                    f"source {source.name}: shares: {shares} are not {buckets} numbers with a sum above 0; "
                    "give one for the short bucket and one for each long bucket"
                )
        return self

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(source.tokens for source in self.sources)


@dataclass(frozen=True)
class Portion:
    """What the run reads of one bucket of one source.

    Attributes:
        budget: tokens that the run reads.
        available: tokens that the bucket holds, or would. None where the source's text is not there.
    """

    source: Source
    bucket: Bucket
    budget: int
    available: Tokens | None

    def enough(self, repeat: bool) -> bool | None:
        """Whether there are enough tokens; None if that is not known.

        Args:
            repeat: whether the run may read them more than once.
        """
        if not self.budget:
            return True
        if self.available is None:
            return None
        wanted = 1 if repeat else self.budget
        if wanted <= self.available.low:
            return True
        return None if wanted <= self.available.high else False


def load_mix(path: str | Path) -> Mix:
    """Read a mix file, or "paper" for the mix of LongRoPE2 (arXiv 2502.20082, section 4.1).

    Raises:
        InputError: not YAML, an unknown or missing field, or a value that does not fit its field.
    """
    if str(path) == "paper":
        path = Path(__file__).with_name("mixes") / "paper.yaml"
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {one_line(error)}") from error
    with naming(path):
        return Mix.model_validate(content)


def preprocess_mix(mix: Mix, settings: PreprocessSettings, *, dry_run: bool = False) -> None:
    """Preprocess every source into `<output>/<name>` and write `<output>/mix.json` for training.

    Before anything is tokenized, a sample of each source says what its buckets will hold, which is printed.
    Then each bucket is filled to its budget. Sources that have been preprocessed are kept, so that a run that
    was stopped resumes. Input folders, buckets and text fields are the mix's, all other settings those given.

    Args:
        dry_run: say what the buckets will hold, as far as the text is there, and stop.

    Raises:
        InputError: as `preprocess`; a kept source that was made with other settings; or a budget above what
            a bucket holds, where the mix does not allow repetition.
    """
    surveys = {}
    for source in mix.sources:
        made = source.settings(mix, settings)
        if manifest := load_manifest(made.output):
            _check_kept(manifest, made, _budgets(mix, source))
        elif made.input.exists() or not dry_run:
            encode = load_encoder_once(made.tokenizer).encode
            surveys[source.name] = survey(made.input, made.text_field, encode, made.original_length)
    _report(mix, settings, surveys)
    if dry_run:
        return
    for source in mix.sources:
        made = source.settings(mix, settings)
        if source.name in surveys:
            preprocess(made, _selection(mix, source, made, surveys[source.name]))
        elif is_first_process():
            # Of a run that was stopped at its very end.
            shutil.rmtree(shards_folder(made.output), ignore_errors=True)
    _report(mix, settings, {})
    read = [portion for portion in portions(mix, settings, {}) if portion.budget]
    # Weights are whole numbers, exact to a millionth of the run.
    step = max(1, mix.tokens // _WEIGHT_STEPS)
    weights = [max(1, round(portion.budget / step)) for portion in read]
    pools = [
        Pool(
            f"{portion.source.name}/{portion.bucket.name}",
            "long" if portion.bucket.longer_than else "short",
            weight // gcd(*weights),
        )
        for portion, weight in zip(read, weights, strict=True)
    ]
    if is_first_process():
        write_json(settings.output / "mix.json", PoolMix(pools=pools, repeat=mix.repeat).model_dump())


def portions(mix: Mix, settings: PreprocessSettings, surveys: Mapping[str, Survey]) -> Iterator[Portion]:
    """Every bucket of every source, with what is preprocessed under `settings.output` or surveyed."""
    for source in mix.sources:
        made = source.settings(mix, settings)
        manifest = load_manifest(made.output)
        budgets = _budgets(mix, source)
        for bucket, fed, budget in zip(made.buckets, made.feeds, budgets, strict=True):
            available = None
            if source.name in surveys:
                available = surveys[source.name].tokens(fed)
            elif manifest:
                tokens = manifest.buckets[bucket.name].tokens
                available = Tokens(tokens, tokens, tokens)
            yield Portion(source, bucket, budget, available)


def token_table(mix: Mix, found: Iterable[Portion]) -> str:
    """The portions as a table: budget and its share of the run, the tokens that there are (with an interval),
    how often they are read, and whether they are enough.
    """
    rows = []
    for portion in found:
        budget, have = portion.budget, portion.available
        counts = ("-", "-", "-", "-")
        if have:
            epochs = f"{budget / have.likely:.2f}" if have.likely else "-"
            counts = (f"{have.likely:,.0f}", f"{have.low:,.0f}", f"{have.high:,.0f}", epochs)
        enough = {True: "yes", False: "no", None: "perhaps" if have else "-"}[portion.enough(mix.repeat)]
        share = f"{budget / mix.tokens:.1%}"
        rows.append((portion.source.name, portion.bucket.name, f"{budget:,}", share, *counts, enough))
    rows.append(("total", "", f"{mix.tokens:,}", "100.0%", "", "", "", "", ""))
    header = ("source", "bucket", "budget", "share", "available", "at least", "at most", "epochs", "enough")
    return text_table(header, rows, left=2)


def _report(mix: Mix, settings: PreprocessSettings, surveys: Mapping[str, Survey]) -> None:
    """Print the table, and refuse a mix that cannot be filled."""
    found = list(portions(mix, settings, surveys))
    if is_first_process():
        print(token_table(mix, found), flush=True)
    if lacking := [_lack(settings, one, found) for one in found if one.enough(mix.repeat) is False]:
        raise InputError("\nerror: ".join(lacking))


def _lack(settings: PreprocessSettings, portion: Portion, found: Sequence[Portion]) -> str:
    """What a bucket lacks, and what would help."""
    source, have = portion.source, portion.available
    assert have is not None
    known = f"{have.high:,.0f}"
    if have.low < have.high:
        known = f"about {have.likely:,.0f} and at most {have.high:,.0f}"
    # The source's tokens at which its scarcest bucket is enough.
    fits = min(
        source.tokens * one.available.likely / one.budget
        for one in found
        if one.source == source and one.budget and one.available
    )
    smaller = f", lower its tokens to {fits:,.0f}" if fits >= 1 else ""
    repetition = ", or allow repetition (`repeat: true`)" if have.likely else ""
    return (
        f"{settings.output / source.name}: the mix asks for {portion.budget:,} tokens of bucket "
        f"{portion.bucket.name}, which has {known}; add text, give the source other shares{smaller}"
        f"{repetition}"
    )


def _budgets(mix: Mix, source: Source) -> list[int]:
    """Tokens of each bucket; rounded cumulatively, so that they add up to the source's."""
    shares = source.shares or mix.shares
    ends = [round(source.tokens * end / sum(shares)) for end in accumulate(shares)]
    return [end - start for start, end in pairwise([0, *ends])]


def _selection(mix: Mix, source: Source, settings: PreprocessSettings, found: Survey) -> Selection:
    """What is taken of a source's text."""
    budgets = [ceil(_SPARE * budget) for budget in _budgets(mix, source)]
    return Selection(settings.feeds, budgets, found.range)


def _check_kept(made: Manifest, settings: PreprocessSettings, budgets: Sequence[int]) -> None:
    """Refuse a source that was preprocessed otherwise than `settings` and `budgets` ask for."""
    check_pool_tokenizer(settings.output, settings.tokenizer)
    was = made.settings.content
    for name, wanted in settings.content.items():
        if was[name] != wanted:
            raise InputError(
                f"{settings.output}: {name}: was made with {was[name]}, this run asks for {wanted}; remove it"
            )
    for bucket, wanted in zip(settings.buckets, budgets, strict=True):
        full = made.budgets.get(bucket.name)
        if full is not None and full <= made.buckets[bucket.name].tokens < wanted:
            raise InputError(
                f"{settings.output}: bucket {bucket.name} was filled up to {full:,} tokens, this run asks "
                f"for {wanted:,}; remove it"
            )
