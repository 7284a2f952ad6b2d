"""Bad input of training is refused in one line, before Megatron is initialised."""

from pathlib import Path

import pytest
from megatron.training.checkpointing import get_checkpoint_tracker_filename

from megatron_longrope2.data.manifest import Pool
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import write_json
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.rope import make_factors
from megatron_longrope2.training.arguments import training_pools
from tests.training.conftest import ORIGINAL, Parse


def long_pool(pools: Path) -> tuple[str, ...]:
    return "--pool", "long", "1", str(pools / "long")


def factor_file(folder: Path, target_length: int, **changes: float) -> Path:
    settings = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": ORIGINAL} | changes
    make_factors("ntk", target_length=target_length, **settings).save(folder / "factors.json")
    return folder / "factors.json"


def test_pools_of_mix_and_command_line(parse: Parse, pools: Path, tmp_path: Path) -> None:
    mixed = {"path_prefix": "books/short", "window": "short", "weight": 3}
    write_json(tmp_path / "mix.json", {"repeat": True, "pools": [mixed]})
    found, repeat = training_pools(parse("--mix", tmp_path / "mix.json", *long_pool(pools)))
    assert found == (
        Pool(str(tmp_path / "books/short"), "short", 3),
        Pool(str(pools / "long"), "long", 1),
    )
    assert repeat


def test_single_window_rescales_everything(parse: Parse, pools: Path) -> None:
    args = parse("--rope-factors", pools / "factors.json", "--single-window", *long_pool(pools))
    factors = factors_of(args)
    assert factors.short_factor == factors.long_factor
    assert factors.attention_factor.short == factors.attention_factor.long > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--pool: no training documents; give --mix, or e.g. --pool long 1 data/long"),
        (["--pool", "long", "0.3", "x"], "--pool: weight: Input should be a valid integer"),
        (["--pool", "medium", "1", "x"], "--pool: window: Input should be 'short' or 'long', not 'medium'"),
        (["--mix", "nowhere/mix.json"], "nowhere/mix.json: cannot be read: No such file or directory"),
        (["--load", "nowhere"], "nowhere: no Megatron checkpoint there"),
        (["--rope-factors", "nowhere.json"], "nowhere.json"),
    ],
)
def test_refused(parse: Parse, options: list[str], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse(*options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_target_shorter_than_the_segments(parse: Parse, pools: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--seq-length: 256 is longer than the 128 tokens that the RoPE"):
        parse("--rope-factors", factor_file(tmp_path, 128), *long_pool(pools))


def test_factors_of_another_original_length(parse: Parse, pools: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="original_length: 64 is not the model's 32"):
        parse("--rope-factors", factor_file(tmp_path, 256), "--original-length", 32, *long_pool(pools))


def test_wandb_without_tensorboard(parse: Parse, pools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the last rank imports wandb, which need not be installed.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    options = ("--wandb-project", "p", "--wandb-exp-name", "n", *long_pool(pools))
    with pytest.raises(InputError, match=r"--wandb-project: .* add --tensorboard-dir"):
        parse(*options)


def test_length_that_the_layout_cannot_share(
    parse: Parse, pools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    layout = ("--context-parallel-size", "4", "--seq-length", "252")
    with pytest.raises(InputError, match=r"seq-length should be a multiple of 2 \* context-parallel-size"):
        parse(*layout, *long_pool(pools))


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("12", "cannot be read"),
        ("latest", "cannot be read"),
    ],
)
def test_unreadable_checkpoint(parse: Parse, tmp_path: Path, tracker: str, message: str) -> None:
    Path(get_checkpoint_tracker_filename(str(tmp_path))).write_text(tracker)
    (tmp_path / "iter_0000012").mkdir()
    (tmp_path / "iter_0000012/common.pt").write_text("cut off")
    with pytest.raises(InputError, match=message) as refusal:
        parse("--load", tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
