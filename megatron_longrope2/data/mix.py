"""A mix: which sources a run reads, and how many tokens of which document length from each.

The YAML file names sources and token budgets:

    long_buckets: [100000, 200000]  # upper ends in tokens; the short bucket ends at the original length
    shares: [3, 3, 4]               # short, then each long bucket; a source may have its own
    repeat: false                   # may a bucket be read more than once? (default false)
    sources:
      - name: books                 # a folder of this name is made in the output
        path: corpora/books         # relative to <input>; default: the name
        tokens: 4.5B                # K, M, B are powers of 1000
        text_field: text            # default
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from math import gcd
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, model_validator

from megatron_longrope2.data.manifest import Manifest, Pool, PoolMix, check_pool_tokenizer, load_manifest
from megatron_longrope2.data.preprocess import preprocess
from megatron_longrope2.data.settings import Bucket, PreprocessSettings
from megatron_longrope2.errors import InputError, naming, one_line
from megatron_longrope2.files import read_text, write_json
from megatron_longrope2.tables import text_table

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_WEIGHT_STEPS = 10**6


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
        available: tokens that the bucket holds; 0 where the source has not been preprocessed.
    """

    source: str
    bucket: Bucket
    budget: int
    available: int


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


def portions(mix: Mix, settings: PreprocessSettings) -> Iterator[Portion]:
    """Every bucket of every source, with what of it is preprocessed under `settings.output` already."""
    for source in mix.sources:
        shares = source.shares or mix.shares
        # Rounded cumulatively, so that the budgets of a source add up to its tokens.
        ends = [round(source.tokens * end / sum(shares)) for end in accumulate(shares)]
        made = source.settings(mix, settings)
        manifest = load_manifest(made.output)
        available = {name: size.tokens for name, size in manifest.buckets.items()} if manifest else {}
        for bucket, start, end in zip(made.buckets, [0, *ends], ends, strict=False):
            yield Portion(source.name, bucket, end - start, available.get(bucket.name, 0))


def token_table(mix: Mix, settings: PreprocessSettings) -> str:
    """The portions as a table: budget, share of the run, available tokens, and how often they are read."""
    rows = []
    for portion in portions(mix, settings):
        budget, have = portion.budget, portion.available
        epochs = f"{budget / have:.2f}" if have else "-"
        share = f"{budget / mix.tokens:.1%}"
        rows.append((portion.source, portion.bucket.name, f"{budget:,}", share, f"{have:,}", epochs))
    rows.append(("total", "", f"{mix.tokens:,}", "100.0%", "", ""))
    return text_table(("source", "bucket", "budget", "share", "available", "epochs"), rows, left=2)


def preprocess_mix(mix: Mix, settings: PreprocessSettings) -> None:
    """Preprocess every source into `<output>/<name>` and write `<output>/mix.json` for training.

    Sources that have been preprocessed are kept, so that a run that was stopped resumes. Input folders,
    buckets and text fields are the mix's, all other settings those given.

    Raises:
        InputError: as `preprocess`; a kept source that was made with other settings; or a budget above what
            a bucket holds, where the mix does not allow repetition.
    """
    for source in mix.sources:
        made = source.settings(mix, settings)
        if manifest := load_manifest(made.output):
            _check_kept(manifest, made)
        else:
            preprocess(made)
    read = [portion for portion in portions(mix, settings) if portion.budget]
    for portion in read:
        have = portion.available
        if portion.budget > have and not (have and mix.repeat):
            repetition = ", or allow repetition (`repeat: true`)" if have else ""
            raise InputError(
                f"{settings.output / portion.source}: the mix asks for {portion.budget:,} tokens of bucket "
                f"{portion.bucket.name}, which has {have:,}; add text, lower the budget{repetition}"
            )
    # Weights are whole numbers, exact to a millionth of the run.
    step = max(1, mix.tokens // _WEIGHT_STEPS)
    weights = [max(1, round(portion.budget / step)) for portion in read]
    pools = [
        Pool(
            f"{portion.source}/{portion.bucket.name}",
            "long" if portion.bucket.longer_than else "short",
            weight // gcd(*weights),
        )
        for portion, weight in zip(read, weights, strict=True)
    ]
    write_json(settings.output / "mix.json", PoolMix(pools=pools, repeat=mix.repeat).model_dump())


def _check_kept(made: Manifest, settings: PreprocessSettings) -> None:
    """Refuse a source that was preprocessed otherwise than `settings` ask for."""
    check_pool_tokenizer(settings.output, settings.tokenizer)
    was = made.settings.content
    for name, wanted in settings.content.items():
        if was[name] != wanted:
            raise InputError(
                f"{settings.output}: {name}: was made with {was[name]}, this run asks for {wanted}; remove it"
            )
