"""A mix file becomes pools whose shares are its token budgets; what cannot be served is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longrope2.cli import longrope2
from megatron_longrope2.data.manifest import load_mix_pools
from megatron_longrope2.data.mix import Mix, load_mix, portions, preprocess_mix, token_table
from megatron_longrope2.data.segments import SegmentConfig, SegmentDataset
from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.errors import InputError

GOOD = """
long_buckets: [1000, 100000]
shares: [1, 1, 2]
sources:
  - {name: books, tokens: 800}
  - {name: code, tokens: 400, text_field: content, shares: [1, 3, 0], path: code/files}
"""


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mix.yaml").write_text(text)
    return tmp_path / "mix.yaml"


@pytest.fixture
def job(tmp_path: Path, corpus: list[str], huggingface: Path) -> PreprocessSettings:
    (tmp_path / "in/code/files").mkdir(parents=True)
    (tmp_path / "in/books.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in corpus))
    lines = "".join(json.dumps({"content": text}) + "\n" for text in corpus)
    (tmp_path / "in/code/files/a.jsonl").write_text(lines)
    return PreprocessSettings(
        input=tmp_path / "in", output=tmp_path / "out", tokenizer=huggingface, original_length=128
    )


def mix_of(tmp_path: Path, text: str) -> Mix:
    return load_mix(write(tmp_path, text.replace("name: books,", "name: books, path: books.jsonl,")))


def test_the_papers_mix_is_ten_billion_tokens_in_its_ratio(job: PreprocessSettings) -> None:
    mix = load_mix("paper")
    assert mix.tokens == 10_000_000_000
    job = replace(job, original_length=8192)
    inputs = [source.settings(mix, job).input for source in mix.sources]
    assert inputs[:2] == [job.input / "redpajama-v1", job.input / "redpajama-v2"]
    found = list(portions(mix, job, {}))
    lengths: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for portion in found:
        lengths[portion.bucket.name] += portion.budget
        sources[portion.source.name] += portion.budget
    assert list(lengths.values()) == [3_000_000_000, 3_000_000_000, 4_000_000_000]
    assert list(sources.values()) == [4_500_000_000, 2_500_000_000, 2_000_000_000, 1_000_000_000]
    assert [portion.budget for portion in found][-3:] == [1_000_000_000, 0, 0]
    rows = [line.split() for line in token_table(mix, found).splitlines()]
    assert ["starcoder", "long-200000", "888,888,889", "8.9%", *"-----"] in rows
    assert rows[-1] == ["total", "10,000,000,000", "100.0%"]


def test_a_mix_becomes_pools_that_train_in_its_shares(tmp_path: Path, job: PreprocessSettings) -> None:
    mix = mix_of(tmp_path, GOOD)
    preprocess_mix(mix, job)
    pools, repeat = load_mix_pools(tmp_path / "out/mix.json")
    assert not repeat
    shares = {Path(pool.path_prefix).relative_to(tmp_path / "out").as_posix(): pool.weight for pool in pools}
    assert shares == {
        "books/short": 2,
        "books/long-1000": 2,
        "books/long-100000": 4,
        "code/short": 1,
        "code/long-1000": 3,
    }
    config = SegmentConfig(pools, 128, 512, global_batch_size=12, seed=0, repeat=True)
    assert SegmentDataset(config, 120, pad_id=0).samples == [20, 20, 40, 10, 30]
    # Run again: the sources are kept, and the result is the same.
    before = (tmp_path / "out/books/short.bin").stat().st_mtime_ns
    assert load_mix_pools(tmp_path / "out/mix.json")[0] == pools
    preprocess_mix(mix, job)
    assert (tmp_path / "out/books/short.bin").stat().st_mtime_ns == before


def test_more_tokens_than_a_bucket_has_need_explicit_repetition(
    tmp_path: Path, job: PreprocessSettings
) -> None:
    greedy = GOOD.replace("tokens: 800", "tokens: 800K")
    with pytest.raises(
        InputError, match=r"books: the mix asks for 200,000 tokens of bucket short, which has"
    ):
        preprocess_mix(mix_of(tmp_path, greedy), job)
    assert not (tmp_path / "out/mix.json").exists()
    preprocess_mix(mix_of(tmp_path, greedy + "repeat: true\n"), job)
    assert load_mix_pools(tmp_path / "out/mix.json")[1]


def test_an_empty_bucket_cannot_be_repeated(tmp_path: Path, job: PreprocessSettings) -> None:
    text = GOOD.replace("[1000, 100000]", "[100000, 200000]") + "repeat: true\n"
    with pytest.raises(
        InputError,
        match=r"tokens of bucket long-200000, which has 0; add text, give the source other shares$",
    ):
        preprocess_mix(mix_of(tmp_path, text), job)


def test_a_kept_source_made_otherwise_is_refused(tmp_path: Path, job: PreprocessSettings) -> None:
    mix = mix_of(tmp_path, GOOD)
    preprocess_mix(mix, job)
    with pytest.raises(InputError, match="out/books: add_bos: was made with False, this run asks for True"):
        preprocess_mix(mix, replace(job, add_bos=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sources:", "sauces:"), "sources: Field required"),
        (("repeat", "repaet"), "repaet: Extra inputs are not permitted"),
        (("tokens: 800", "tokens: many"), r"sources\.0\.tokens: .*'many' is not a number of tokens"),
        (("tokens: 400, ", ""), r"sources\.1\.tokens: Field required"),
        (("shares: [1, 1, 2]", "shares: [1, 1]"), r"source books: shares: \[1, 1\] are not 3 numbers"),
        (("shares: [1, 1, 2]", ""), r"source books: shares: \[\] are not 3 numbers"),
        (("name: code", "name: books"), "a name occurs twice"),
        (("name: code", "name: ../code"), r"sources\.1\.name: String should match pattern"),
        (("[1000, 100000]", "[1000, x]"), r"long_buckets\.1: Input should be a valid integer"),
        (("[1000, 100000]", "[1000, -1]"), r"long_buckets\.1: Input should be greater than or equal to 0"),
        (("repeat: false", "repeat: 3"), "repeat: Input should be a valid boolean"),
        (("sources:", "sources: ]"), "not valid YAML"),
    ],
)
def test_a_bad_mix_file_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_mix(write(tmp_path, (GOOD + "repeat: false\n").replace(*change)))


def test_a_missing_mix_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_mix(tmp_path / "nothing.yaml")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json: pools: Field required"):
        load_mix_pools(tmp_path / "other.json")


def command(job: PreprocessSettings, mix: str | Path, *options: str) -> None:
    paths = ("--input", job.input, "--output", job.output, "--tokenizer", job.tokenizer)
    words = ("preprocess", "--mix", mix, *paths, "--original-length", job.original_length, *options)
    longrope2()(list(map(str, words)))


def test_dry_run_prints_the_table_and_writes_nothing(
    job: PreprocessSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    command(replace(job, original_length=8192), "paper", "--dry-run")
    assert "10,000,000,000" in capsys.readouterr().out
    assert not job.output.exists()


def test_the_command_line_runs_a_mix(
    tmp_path: Path, job: PreprocessSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    command(job, write(tmp_path, GOOD.replace("name: books,", "name: books, path: books.jsonl,")))
    assert capsys.readouterr().out.splitlines()[-1].startswith("total")
    assert len(load_mix_pools(tmp_path / "out/mix.json")[0]) == 5
