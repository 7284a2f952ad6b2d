"""A run's segments: bad pools are refused before Megatron is initialised, validation passes are alike."""

import shutil
from pathlib import Path

import pytest
import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import sha256
from megatron_longrope2.training.segments import segment_provider
from tests.data.conftest import write_manifest
from tests.training.conftest import Parse


def test_validation_reads_the_same_segments_at_every_pass(parse: Parse, pools: Path) -> None:
    args = parse(
        *("--pool", "short", "1", pools / "short", "--valid-pool", "long", "1", pools / "long"),
        *("--eval-iters", "2", "--eval-interval", "3", "--global-batch-size", "2"),
    )
    training, validation, test = segment_provider(args)([12, 12, 4])
    assert len(training) == 12
    assert len(validation) == 12 + 4
    assert test is None
    for i in range(4):
        assert torch.equal(validation[i]["tokens"], validation[i + 4]["tokens"])
    assert not torch.equal(validation[0]["tokens"], validation[1]["tokens"])


def test_a_single_window_trains_without_masks_and_is_validated_document_by_document(
    parse: Parse, pools: Path
) -> None:
    args = parse(
        *("--pool", "short", "1", pools / "short", "--valid-pool", "short", "1", pools / "short"),
        *("--eval-iters", "1", "--eval-interval", "6", "--global-batch-size", "2", "--single-window"),
    )
    training, validation, _ = segment_provider(args)([12, 2, 0])
    assert training[0]["max_seqlen"] == args.seq_length
    assert validation[0]["max_seqlen"] <= args.original_length


def test_a_complete_run_reads_nothing_more(parse: Parse, pools: Path) -> None:
    args = parse("--pool", "short", "1", pools / "short", "--global-batch-size", "2")
    provide = segment_provider(args)
    args.consumed_train_samples = 12
    assert provide([12, 0, 0]) == (None, None, None)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_tensor_parallel_rank_reads(
    parse: Parse, pools: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    options = ("--tensor-model-parallel-size", "2", "--repeat-data", "--pool", "short", "1", pools / "short")
    provider = segment_provider(parse(*options))
    assert provider.is_distributed
    training, _, _ = provider([48, 0, 0])
    assert len(training) == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pool", "long", "1", "{pools}/nowhere"], "nowhere.bin: no such file; name the pool's path"),
        (["--pool", "short", "1", "{pools}/long"], "long: holds a document of .* too long for the short"),
        (["--pool", "long", "1", "{pools}/short"], "short: holds a document of .* not longer than the short"),
        (["--pool", "long", "0", "{pools}/long"], "pools: none has a weight above 0"),
        (
            ["--pool", "short", "1", "{pools}/short", "--train-iters", "1000"],
            "short: the run needs 8000 segments of 256 tokens, the pool has .* or allow repetition",
        ),
        (
            ["--pool", "short", "1", "{pools}/short", "--vocab-size", "100"],
            "short.bin: holds token id .* the model's vocabulary has 100; preprocess the text with",
        ),
        (
            ["--pool", "short", "1", "{pools}/short", "--seq-length", "64"],
            "--seq-length: 64 is not longer than the original length 64; give the target length",
        ),
        (
            ["--pool", "long", "1", "{pools}/long", "--valid-pool", "long", "1", "{pools}/other"],
            "other.bin: no such file",
        ),
    ],
)
def test_refused(parse: Parse, pools: Path, options: list[str], message: str) -> None:
    args = parse(*(option.format(pools=pools) for option in options))
    with pytest.raises(InputError, match=message) as refusal:
        segment_provider(args)
    assert "\n" not in str(refusal.value)


def test_repetition_is_allowed_explicitly(parse: Parse, pools: Path) -> None:
    args = parse("--pool", "short", "1", pools / "short", "--train-iters", "1000", "--repeat-data")
    assert len(segment_provider(args)([8000, 0, 0])[0]) == 8000


def test_cut_off_index(parse: Parse, pools: Path, tmp_path: Path) -> None:
    shutil.copy(pools / "long.bin", tmp_path)
    (tmp_path / "long.idx").write_bytes((pools / "long.idx").read_bytes()[:-100])
    args = parse("--pool", "long", "1", tmp_path / "long")
    with pytest.raises(InputError, match=r"long\.idx: cut off or corrupt"):
        segment_provider(args)


def test_run_without_a_length(parse: Parse, pools: Path) -> None:
    args = parse("--pool", "long", "1", pools / "long")
    args.train_iters = None
    with pytest.raises(InputError, match="--train-iters: the run's length is missing"):
        segment_provider(args)


def test_pool_of_another_tokenizer(parse: Parse, pools: Path, tmp_path: Path) -> None:
    for suffix in (".bin", ".idx"):
        shutil.copy(pools / f"long{suffix}", tmp_path / f"long{suffix}")
    tokenizer = tmp_path / "checkpoint/tokenizer"
    tokenizer.mkdir(parents=True)
    args = parse("--pool", "long", "1", tmp_path / "long", "--tokenizer-model", tokenizer)
    write_manifest(tmp_path, Path("other/tokenizer.json"), "0")
    # Data made with tokenizer.json, a checkpoint with tiktoken ranks: nothing to compare.
    (tokenizer / "tokenizer.model").write_text("ranks")
    segment_provider(args)
    (tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"made with other/tokenizer\.json, which is not the model's .*json; pre"
    ):
        segment_provider(args)
    write_manifest(tmp_path, Path("other/tokenizer.json"), sha256(tokenizer / "tokenizer.json"))
    segment_provider(args)
