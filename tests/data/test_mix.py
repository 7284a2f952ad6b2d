"""A mix file becomes pools whose shares are its token budgets; what cannot be served is refused."""

import json
import random
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longrope2.cli import longrope2
from megatron_longrope2.data.manifest import load_manifest, load_mix_pools
from megatron_longrope2.data.mix import Mix, load_mix, portions, preprocess_mix, token_table
from megatron_longrope2.data.pools import open_pool
from megatron_longrope2.data.segments import SegmentConfig, SegmentDataset
from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from tests.data.conftest import WORDS
from tests.processes import Processes
from tests.processes import longrope2 as longrope2_process

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


LONG_AND_SHORT = """
long_buckets: [400, 4000]
shares: [1, 2, 0]
sources:
  - {name: books, tokens: 6000}
"""


@pytest.fixture
def large(tmp_path: Path, huggingface: Path) -> PreprocessSettings:
    """900 documents in four files and shards of about 30; the mix takes a part of them."""
    rng = random.Random(5)
    (tmp_path / "in/books").mkdir(parents=True)
    for file in range(4):
        lengths = rng.choices([20, 60, 200, 900], [50, 20, 25, 5], k=225)
        texts = (" ".join(rng.choices(WORDS, k=length)) + f" {file}." for length in lengths)
        lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(texts))
        (tmp_path / f"in/books/{file}.jsonl").write_text(lines)
    return PreprocessSettings(
        input=tmp_path / "in",
        output=tmp_path / "out",
        tokenizer=huggingface,
        original_length=128,
        shard_size=0.02,
    )


def files(folder: Path) -> dict[str, bytes]:
    """What was written, by name; the manifest says where to."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in found:
        if name.endswith("manifest.json"):
            content = json.loads(found[name])
            for key in ("output", "workers"):
                content["settings"].pop(key)
            found[name] = json.dumps(content).encode()
    return found


def test_a_bucket_takes_its_budget_and_no_more(tmp_path: Path, large: PreprocessSettings) -> None:
    mix = load_mix(write(tmp_path, LONG_AND_SHORT))
    preprocess_mix(mix, large)
    manifest = load_manifest(large.output / "books")
    assert manifest is not None
    assert manifest.budgets == {"short": 2020, "long-400": 4040, "long-4000": 0}
    # With its last document a bucket may have more.
    assert 2020 <= manifest.buckets["short"].tokens < 2020 + 128
    assert 4040 <= manifest.buckets["long-400"].tokens < 4040 + 400
    assert manifest.buckets["long-4000"].documents == 0
    assert not (large.output / "books/long-4000.bin").exists()
    # Not the first documents of the first file.
    pool = open_pool(large.output / "books/short")
    tokenizer = load_tokenizer(large.tokenizer)
    from_file = Counter(tokenizer.decode(pool[i])[-6] for i in range(len(pool)))
    assert len(from_file) > 1
    # What was filled for less is not enough for more, and is not made again in silence.
    more = load_mix(write(tmp_path, LONG_AND_SHORT.replace("6000", "9000")))
    with pytest.raises(InputError, match="books: bucket short was filled up to 2,020 tokens, this run asks"):
        preprocess_mix(more, large)


def test_neither_workers_nor_ranks_nor_interruptions_change_the_result(
    tmp_path: Path, large: PreprocessSettings
) -> None:
    mix = write(tmp_path, LONG_AND_SHORT)
    words = ["preprocess", "--mix", mix, "--input", large.input, "--tokenizer", large.tokenizer]
    words += ["--original-length", large.original_length, "--shard-size", large.shard_size]
    outputs = [tmp_path / name for name in ("one", "workers", "ranks", "killed")]
    for output, workers, ranks in ((outputs[0], 1, 1), (outputs[1], 2, 1), (outputs[2], 2, 2)):
        done = longrope2_process(*words, "--output", output, "--workers", workers, ranks=ranks)
        assert done.returncode == 0, done.stderr
    killed = ["-m", "megatron_longrope2", *words, "--output", outputs[3]]
    running = Processes(*killed, ranks=2)
    while running.running and len(list(outputs[3].glob(".books.shards/*/"))) < 3:
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert not (outputs[3] / "books").exists(), "it was over before it was killed"
    done = longrope2_process(*words, "--output", outputs[3], "--workers", 2)
    assert done.returncode == 0, done.stderr
    reference = files(outputs[0])
    assert {"mix.json", "books/manifest.json", "books/short.bin", "books/long-400.bin"} <= reference.keys()
    for output in outputs[1:]:
        assert files(output) == reference
        assert [path.name for path in sorted(output.iterdir())] == ["books", "mix.json"]


def test_a_mix_that_cannot_be_filled_is_refused_before_it_is_tokenized(
    tmp_path: Path, large: PreprocessSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = load_mix(write(tmp_path, LONG_AND_SHORT.replace("tokens: 6000", "tokens: 600K")))
    with pytest.raises(InputError) as refused:
        preprocess_mix(greedy, large)
    first, second = str(refused.value).split("\nerror: ")
    assert "asks for 200,000 tokens of bucket short, which has about " in first
    assert "asks for 400,000 tokens of bucket long-400, which has about " in second
    assert not large.output.exists()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows] == ["enough", "no", "no", "yes", "100.0%"]
    # What the message says to change does help.
    (fits,) = re.findall(r"lower its tokens to ([\d,]+)", first)
    fitting = LONG_AND_SHORT.replace("tokens: 6000", f"tokens: {round(0.9 * int(fits.replace(',', '')))}")
    preprocess_mix(load_mix(write(tmp_path, fitting)), large)


def test_a_missing_source_is_refused_before_others_are_tokenized(
    tmp_path: Path, large: PreprocessSettings
) -> None:
    mix = load_mix(write(tmp_path, LONG_AND_SHORT + "  - {name: code, tokens: 100}\n"))
    with pytest.raises(InputError, match="in/code: no such file or folder"):
        preprocess_mix(mix, large)
    assert not large.output.exists()
