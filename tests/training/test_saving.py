"""A folder that checkpoints cannot be saved in is refused before training."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.training.saving import check_save_folder, checkpoint_bytes
from tests.training.conftest import Parse


def test_folder_is_made_and_left_empty(parse: Parse, pools: Path, tmp_path: Path) -> None:
    args = parse("--pool", "long", "1", pools / "long", "--save", tmp_path / "new/folder")
    check_save_folder(args)
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_below_a_file(parse: Parse, pools: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    args = parse("--pool", "long", "1", pools / "long", "--save", tmp_path / "file/folder")
    with pytest.raises(InputError, match="file/folder: --save: cannot be written: Not a directory"):
        check_save_folder(args)


def test_full_disk(parse: Parse, pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse("--pool", "long", "1", pools / "long", "--save", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"needs \S+ GB, 1e-06 GB are free; choose another place"):
        check_save_folder(args)


def test_size_of_a_checkpoint(parse: Parse, pools: Path) -> None:
    args = parse("--pool", "long", "1", pools / "long", "--bf16", "--untie-embeddings-and-output-weights")
    # Two layers of hidden size 32: two heads of 16, an MLP of 48, two norms. The last norm, 256 ids twice;
    # 2 + 12 bytes each.
    parameters = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32 + 2 * 32 * 256
    assert checkpoint_bytes(args) == 14 * parameters
