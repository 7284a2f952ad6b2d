"""A mix file becomes pools whose shares are its token budgets; what cannot be served is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longrope2.data.mix import (
    Mix,
    available_tokens,
    load_mix,
    load_mix_pools,
    preprocess_mix,
    token_table,
)
from megatron_longrope2.data.mixed_window import MixedWindowConfig, MixedWindowDataset
from megatron_longrope2.data.preprocess import PreprocessConfig
from megatron_longrope2.errors import InputError
from megatron_longrope2.tools import preprocess_data

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
def job(tmp_path: Path, corpus: list[str], huggingface: Path) -> PreprocessConfig:
    (tmp_path / "in/code/files").mkdir(parents=True)
    (tmp_path / "in/books.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in corpus))
    lines = "".join(json.dumps({"content": text}) + "\n" for text in corpus)
    (tmp_path / "in/code/files/a.jsonl").write_text(lines)
    return PreprocessConfig(str(tmp_path / "in"), str(tmp_path / "out"), str(huggingface), 128)


def mix_of(tmp_path: Path, text: str) -> Mix:
    return load_mix(
        write(tmp_path, text.replace("name: books,", "name: books, path: books.jsonl,")), tmp_path / "in"
    )


def test_the_papers_mix_is_ten_billion_tokens_in_its_ratio() -> None:
    mix = load_mix("paper", "/data")
    assert mix.tokens == 10_000_000_000
    assert [source.path for source in mix.sources][:2] == ["/data/redpajama-v1", "/data/redpajama-v2"]
    totals = [sum(source.budgets[i] for source in mix.sources) for i in range(3)]
    assert totals == [3_000_000_000, 3_000_000_000, 4_000_000_000]
    table = token_table(mix, 8192, {})
    assert "starcoder     long-200000     800,000,000    8.0%          ?       ?" in table
    assert table.splitlines()[-1].split() == ["total", "10,000,000,000", "100.0%"]


def test_a_mix_becomes_pools_that_train_in_its_shares(tmp_path: Path, job: PreprocessConfig) -> None:
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
    config = MixedWindowConfig(pools, 128, 512, global_batch_size=12, seed=0, repeat=True)
    rows = MixedWindowDataset(config, 120, pad_id=0).statistics()
    assert [row["samples"] for row in rows] == [20, 20, 40, 10, 30]
    table = token_table(mix, 128, available_tokens(mix, tmp_path / "out"))
    assert "?" not in table
    # Run again: the sources are kept, and the result is the same.
    before = (tmp_path / "out/books/short.bin").stat().st_mtime_ns
    assert load_mix_pools(tmp_path / "out/mix.json")[0] == pools
    preprocess_mix(mix, job)
    assert (tmp_path / "out/books/short.bin").stat().st_mtime_ns == before


def test_more_tokens_than_a_bucket_has_need_explicit_repetition(
    tmp_path: Path, job: PreprocessConfig
) -> None:
    greedy = GOOD.replace("tokens: 800", "tokens: 800K")
    with pytest.raises(InputError, match=r"source books: asks for 200,000 tokens of bucket short, which has"):
        preprocess_mix(mix_of(tmp_path, greedy), job)
    assert not (tmp_path / "out/mix.json").exists()
    preprocess_mix(mix_of(tmp_path, greedy + "repeat: true\n"), job)
    assert load_mix_pools(tmp_path / "out/mix.json")[1]


def test_an_empty_bucket_cannot_be_repeated(tmp_path: Path, job: PreprocessConfig) -> None:
    text = GOOD.replace("[1000, 100000]", "[100000, 200000]") + "repeat: true\n"
    with pytest.raises(
        InputError, match=r"tokens of bucket long-200000, which has 0; add text, lower the budget$"
    ):
        preprocess_mix(mix_of(tmp_path, text), job)


def test_a_kept_source_made_otherwise_is_refused(tmp_path: Path, job: PreprocessConfig) -> None:
    mix = mix_of(tmp_path, GOOD)
    preprocess_mix(mix, job)
    with pytest.raises(InputError, match="add_bos: was made with False, this run asks for True"):
        preprocess_mix(mix, replace(job, add_bos=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sources:", "sauces:"), "sources: is missing"),
        (("repeat", "repaet"), "repaet: unknown field; known are long_buckets, repeat, shares, sources"),
        (("tokens: 800", "tokens: many"), r"sources\[0\]: tokens: 'many' is not a number of tokens"),
        (("tokens: 400, ", ""), r"sources\[1\]: tokens: is missing"),
        (("shares: [1, 1, 2]", "shares: [1, 1]"), r"sources\[0\]: shares: \[1, 1\] are not 3 numbers"),
        (("name: code", "name: books"), "a name occurs twice"),
        (("name: code", "name: ../code"), r"sources\[1\]: name: '../code' is not a word"),
        (("[1000, 100000]", "[1000, x]"), "long_buckets: .* is not a list of whole numbers"),
        (("repeat: false", "repeat: 3"), "repeat: 3 is not true or false"),
        (("sources:", "sources: ]"), "not valid YAML"),
    ],
)
def test_a_bad_mix_file_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_mix(write(tmp_path, (GOOD + "repeat: false\n").replace(*change)), tmp_path)


def test_a_missing_mix_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_mix(tmp_path / "nothing.yaml", tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match='format: is not "longrope2-mix/1"'):
        load_mix_pools(tmp_path / "other.json")


def test_dry_run_prints_the_table_and_writes_nothing(
    tmp_path: Path, huggingface: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--mix", "paper", "--dry-run", "--input", "/data", "--output", str(tmp_path / "out")]
    options = ["--tokenizer", str(huggingface), "--original-length", "8192"]
    monkeypatch.setattr("sys.argv", ["preprocess_data", *arguments, *options])
    preprocess_data.main()
    assert "10,000,000,000" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_command_line_runs_a_mix(
    tmp_path: Path, job: PreprocessConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = write(tmp_path, GOOD.replace("name: books,", "name: books, path: books.jsonl,"))
    arguments = ["--mix", str(mix), "--input", job.input, "--output", job.output, "--original-length", "128"]
    monkeypatch.setattr("sys.argv", ["preprocess_data", *arguments, "--tokenizer", job.tokenizer])
    preprocess_data.main()
    assert "mix.json" in capsys.readouterr().out
    assert len(load_mix_pools(tmp_path / "out/mix.json")[0]) == 5
