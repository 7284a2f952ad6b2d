"""Two checkpoints are found to be the same model, or what is different is said."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings, VerifySettings
from megatron_longrope2.checkpoint.verify import compare_logits, differences, read_structure
from megatron_longrope2.cli import run_main
from megatron_longrope2.errors import InputError
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import ORIGINAL, save_model
from tests.processes import longrope2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model three ways: the original, extended in Megatron's format, and exported from there."""
    root = tmp_path_factory.mktemp("verify")
    longrope2_factors(root)
    hf = save_model(root / "hf", tie_word_embeddings=True)
    import_hf(ImportSettings(hf, root / "megatron", rope_factors=root / "factors.json"))
    export_hf(ExportSettings(root / "megatron", root / "back", max_shard_size=100e-6))
    return {name: root / name for name in ("hf", "megatron", "back")}


def test_same_structure_whatever_the_format(folders: dict[str, Path]) -> None:
    one, other = read_structure(folders["back"]), read_structure(folders["megatron"])
    assert (one.kind, other.kind) == ("Hugging Face", "Megatron")
    assert differences(one, other) == []


def test_forgotten_factors_are_found(folders: dict[str, Path]) -> None:
    found = differences(read_structure(folders["hf"]), read_structure(folders["megatron"]))
    assert found == ["RoPE: plain in the first, rescaled in the second"]


def test_other_sizes_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", num_hidden_layers=1, intermediate_size=96, rms_norm_eps=1e-5)
    found = differences(read_structure(folders["hf"]), read_structure(other))
    assert "lm_head.weight: only in the second" in found
    assert "model.layers.1.mlp.up_proj.weight: only in the first" in found
    assert (
        "model.layers.0.mlp.up_proj.weight: shape [88, 64] in the first, shape [96, 64] in the second"
        in found
    )
    assert "rms_norm_eps: 1e-06 in the first, 1e-05 in the second" in found


def test_logits_of_one_changed_weight_differ(folders: dict[str, Path], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(folders["hf"], tmp_path / "changed"))
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    (same,) = compare_logits(folders["hf"], folders["hf"], VerifySettings(lengths=(ORIGINAL,)))
    assert same["largest"] == 0
    assert same["same_prediction"] == 1
    (row,) = compare_logits(folders["hf"], changed, VerifySettings(lengths=(ORIGINAL,)))
    assert row["largest"] > 1e-3
    assert 0 < row["mean"] < row["largest"]


def test_structure_only_reads_no_weights(
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_weights(*_: object) -> torch.Tensor:
        raise AssertionError("weights were read")

    monkeypatch.setattr("megatron_longrope2.checkpoint.hf_files.HFTensors.__getitem__", no_weights)
    monkeypatch.setattr("megatron_longrope2.checkpoint.megatron_files.MegatronTensors.read", no_weights)
    arguments = ["longrope2", "verify", str(folders["back"]), str(folders["megatron"]), "--structure-only"]
    monkeypatch.setattr(sys, "argv", arguments)
    run_main()
    assert "same tensors, shapes and RoPE" in capsys.readouterr().out
    monkeypatch.setattr(
        sys, "argv", ["longrope2", "verify", str(folders["hf"]), str(folders["megatron"]), "--structure-only"]
    )
    with pytest.raises(SystemExit) as ended:
        run_main()
    assert ended.value.code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, ""),
        (2, "--pipeline-model-parallel-size 2"),
        (4, "--tensor-model-parallel-size 2 --context-parallel-size 2 --megatron --sequence-parallel"),
    ],
)
def test_command_line_compares_the_two_formats(folders: dict[str, Path], ranks: int, layout: str) -> None:
    done = longrope2("verify", folders["back"], folders["megatron"], *layout.split(), ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [row[0] for row in rows] == [str(ORIGINAL), str(2 * ORIGINAL)]
    assert all(float(row[1]) < 1e-4 and row[-1] == "100.0%" for row in rows)
    assert done.stdout.count("same tensors, shapes and RoPE") == 1


def test_a_length_without_a_prediction_is_refused() -> None:
    with pytest.raises(InputError, match="--lengths: 1 token leaves none to predict; use 2 or more"):
        VerifySettings(lengths=(64, 1))
