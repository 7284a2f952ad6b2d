"""A mix: which sources a run reads, and how many tokens of which document length from each.

The YAML file names sources and token budgets:

    long_buckets: [100000, 200000]  # upper ends in tokens; the short bucket ends at the original length
    shares: [3, 3, 4]               # short, then each long bucket; a source may have its own
    repeat: false                   # may a bucket be read more than once? (default false)
    sources:
      - name: books                 # a folder of this name is made in the output
        path: corpora/books         # default: <input>/<name>; relative to <input>
        tokens: 4.5B                # K, M, B are powers of 1000
        text_field: text            # default
"""

import re
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import yaml

from megatron_longrope2.data.encoder import load_encoder
from megatron_longrope2.data.pools import Pool
from megatron_longrope2.data.preprocess import PreprocessConfig, preprocess
from megatron_longrope2.data.shards import Bucket
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json

FORMAT = "longrope2-mix/1"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_WEIGHT_STEPS = 10**6


@dataclass(frozen=True)
class Source:
    """One source's text and its token budget for every bucket, the short one first."""

    name: str
    path: str
    text_field: str
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Mix:
    """The content of a mix file; `source` is where it was read from, for messages."""

    source: str
    long_buckets: tuple[int, ...]
    repeat: bool
    sources: tuple[Source, ...]

    @property
    def tokens(self) -> int:
        return sum(sum(source.budgets) for source in self.sources)

    def buckets(self, original_length: int) -> tuple[Bucket, ...]:
        """The buckets that the budgets are for."""
        return PreprocessConfig("", "", "", original_length, self.long_buckets).buckets


def load_mix(path: str | Path, input_folder: str | Path) -> Mix:
    """Read a mix file, or "paper" for the paper's; sources are looked for under `input_folder`.

    Raises:
        InputError: not YAML, an unknown or missing field, or a budget that is not a number of tokens.
    """
    if str(path) == "paper":
        path = Path(__file__).with_name("mixes") / "paper.yaml"
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    raw = _fields(raw, str(path), required={"long_buckets", "sources"}, optional={"shares", "repeat"})
    long_buckets = _whole_numbers(raw["long_buckets"], f"{path}: long_buckets")
    if not isinstance(raw["sources"], list) or not raw["sources"]:
        raise InputError(f"{path}: sources: not a list of sources; give at least one")
    sources = tuple(
        _source(entry, f"{path}: sources[{i}]", raw.get("shares"), 1 + len(long_buckets), Path(input_folder))
        for i, entry in enumerate(raw["sources"])
    )
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: sources: a name occurs twice among {', '.join(names)}; rename one")
    if not isinstance(raw.get("repeat", False), bool):
        raise InputError(f"{path}: repeat: {raw['repeat']!r} is not true or false")
    return Mix(str(path), long_buckets, raw.get("repeat", False), sources)


def _source(raw: Any, where: str, shares: Any, buckets: int, input_folder: Path) -> Source:
    raw = _fields(raw, where, required={"name", "tokens"}, optional={"path", "shares", "text_field"})
    name = raw["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{where}: name: {name!r} is not a word of letters, digits, dots and dashes")
    shares = _whole_numbers(raw.get("shares", shares), f"{where}: shares")
    if len(shares) != buckets or not sum(shares):
        raise InputError(
            f"{where}: shares: {list(shares)} are not {buckets} numbers with a sum above 0; give one for the "
            "short bucket and one for each long bucket"
        )
    tokens = _token_count(raw["tokens"], f"{where}: tokens")
    # Rounded cumulatively, so that the budgets of a source add up to its tokens.
    ends = [round(tokens * sum(shares[: i + 1]) / sum(shares)) for i in range(buckets)]
    budgets = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    return Source(name, str(input_folder / raw.get("path", name)), raw.get("text_field", "text"), budgets)


def _fields(raw: Any, where: str, *, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: is not a mapping with {', '.join(sorted(required))}")
    for name in sorted(required - set(raw)):
        raise InputError(f"{where}: {name}: is missing")
    for name in sorted(map(str, set(raw) - required - optional)):
        raise InputError(
            f"{where}: {name}: unknown field; known are {', '.join(sorted(required | optional))}"
        )
    return raw


def _whole_numbers(raw: Any, where: str) -> tuple[int, ...]:
    if not isinstance(raw, list) or not all(isinstance(n, int) and n >= 0 for n in raw):
        raise InputError(f"{where}: {raw!r} is not a list of whole numbers >= 0")
    return tuple(raw)


def _token_count(raw: Any, where: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMBT]?)", str(raw))
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 1:
        raise InputError(f"{where}: {raw!r} is not a number of tokens such as 300000000, 300M or 4.5B")
    return count


def available_tokens(mix: Mix, output: str | Path) -> dict[str, list[int]]:
    """Tokens in every bucket of the sources that are preprocessed under `output` already."""
    available = {}
    for source in mix.sources:
        manifest = Path(output) / source.name / "manifest.json"
        if manifest.exists():
            available[source.name] = [bucket["tokens"] for bucket in read_json(manifest)["buckets"]]
    return available


def token_table(mix: Mix, original_length: int, available: dict[str, list[int]]) -> str:
    """The mix as lines: budget, share of the run, tokens there are, and how often they are read."""
    rows = [("source", "bucket", "budget", "share", "available", "epochs")]
    for source in mix.sources:
        there = available.get(source.name)
        for i, (bucket, budget) in enumerate(zip(mix.buckets(original_length), source.budgets, strict=True)):
            have = there[i] if there else None
            rows.append(
                (
                    source.name,
                    bucket.name,
                    f"{budget:,}",
                    f"{budget / mix.tokens:.1%}",
                    "?" if have is None else f"{have:,}",
                    f"{budget / have:.2f}" if have else "?" if have is None else "-",
                )
            )
    rows.append(("total", "", f"{mix.tokens:,}", f"{1:.1%}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def preprocess_mix(mix: Mix, job: PreprocessConfig) -> dict[str, Any]:
    """Preprocess every source into `<job.output>/<name>` and write `<job.output>/mix.json` for training.

    Sources that are there already are kept, so a stopped run goes on where it was. `job` gives everything
    but input, buckets and text field, which are the mix's.

    Raises:
        InputError: as `preprocess`; a kept source that was made otherwise; or a budget above what a bucket
            has, where the mix does not allow repetition.
    """
    output = Path(job.output)
    for source in mix.sources:
        config = PreprocessConfig(
            input=source.path,
            output=str(output / source.name),
            tokenizer=job.tokenizer,
            original_length=job.original_length,
            long_buckets=mix.long_buckets,
            text_field=source.text_field,
            add_bos=job.add_bos,
            cut_long_documents=job.cut_long_documents,
            allow_empty_buckets=True,
            workers=job.workers,
            shard_bytes=job.shard_bytes,
        )
        manifest = output / source.name / "manifest.json"
        if manifest.exists():
            _check_kept(manifest, config)
        else:
            preprocess(config)
    available = available_tokens(mix, output)
    _check_budgets(mix, job.original_length, available)
    entries = _pool_entries(mix, job.original_length)
    result = {"format": FORMAT, "tokens": mix.tokens, "repeat": mix.repeat, "pools": entries}
    write_json(output / "mix.json", result)
    return result


def _check_kept(manifest: Path, config: PreprocessConfig) -> None:
    made = read_json(manifest)
    tokenizer = load_encoder(config.tokenizer)
    buckets = [[b["name"], b["longer_than"], b["at_most"]] for b in made["buckets"]]
    wanted = [[b.name, b.longer_than, b.at_most] for b in config.buckets]
    for name, is_, should in (
        ("buckets", buckets, wanted),
        ("input", made["input"]["path"], config.input),
        ("tokenizer", made["tokenizer"]["sha256"], tokenizer.sha256),
        ("add_bos", made["add_bos"], config.add_bos),
        ("cut_long_documents", made["cut_long_documents"], config.cut_long_documents),
    ):
        if is_ != should:
            raise InputError(
                f"{manifest}: {name}: was made with {is_}, this run asks for {should}; remove the folder"
            )


def _check_budgets(mix: Mix, original_length: int, available: dict[str, list[int]]) -> None:
    for source in mix.sources:
        buckets = mix.buckets(original_length)
        for bucket, budget, have in zip(buckets, source.budgets, available[source.name], strict=True):
            if budget > have and (not have or not mix.repeat):
                mend = ", or allow repetition (`repeat: true`)" if have else ""
                raise InputError(
                    f"{mix.source}: source {source.name}: asks for {budget:,} tokens of bucket "
                    f"{bucket.name}, which has {have:,}; add text, lower the budget{mend}"
                )


def _pool_entries(mix: Mix, original_length: int) -> list[dict[str, Any]]:
    """A pool for every budget. Weights are whole numbers, exact to a millionth of the run."""
    step = max(1, mix.tokens // _WEIGHT_STEPS)
    budgets = [
        (source, bucket, budget)
        for source in mix.sources
        for bucket, budget in zip(mix.buckets(original_length), source.budgets, strict=True)
        if budget
    ]
    weights = [max(1, round(budget / step)) for _, _, budget in budgets]
    return [
        {
            "path_prefix": f"{source.name}/{bucket.name}",
            "window": "long" if bucket.longer_than else "short",
            "weight": weight // gcd(*weights),
            "tokens": budget,
        }
        for (source, bucket, budget), weight in zip(budgets, weights, strict=True)
    ]


def load_mix_pools(path: str | Path) -> tuple[tuple[Pool, ...], bool]:
    """The pools of a `mix.json` for `MixedWindowConfig`, and whether they may be read more than once.

    Raises:
        InputError: not a file that `preprocess_mix` wrote.
    """
    mix = read_json(path)
    if not isinstance(mix, dict) or mix.get("format") != FORMAT:
        raise InputError(f'{path}: format: is not "{FORMAT}"; give the mix.json that preprocessing wrote')
    folder = Path(path).parent
    pools = tuple(Pool(str(folder / p["path_prefix"]), p["window"], p["weight"]) for p in mix["pools"])
    return pools, mix["repeat"]
