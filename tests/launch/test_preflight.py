"""Each thing that can be known to be wrong is found, and all of it at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_longrope2.data.pools import write_documents
from megatron_longrope2.files import read_json, sha256, write_json
from megatron_longrope2.launch import preflight
from megatron_longrope2.launch.preflight import node_problems, settings_problems, stage_problems
from megatron_longrope2.launch.settings import Settings, load_settings
from megatron_longrope2.rope import make_factors
from tests.data.conftest import write_manifest
from tests.launch.conftest import BASE, Write


@pytest.fixture
def ready(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A chain whose training could start, but for the checkpoint, whose reader has its own tests."""
    settings = load_settings(write())
    monkeypatch.setattr(preflight, "_checkpoint_problems", lambda _: iter(()))
    document = [np.arange(9)]
    write_documents(settings.run / "data/short", document, vocab_size=1024)
    write_documents(tmp_path / "long", document, vocab_size=1024)
    write_manifest(settings.run / "data", Path("tokenizer.json"), sha256(BASE / "tokenizer.json"))
    _save_factors(settings)
    return settings


def _save_factors(settings: Settings, **changed: float) -> None:
    config = read_json(BASE / "config.json")
    known = {
        "rope_base": config["rope_parameters"]["rope_theta"],
        "rotary_dim": config["head_dim"],
        "original_length": 256,
        "target_length": 512,
    }
    make_factors("yarn", **{**known, **changed}).save(settings.run / "search/factors.json")


def test_nothing_wrong(ready: Settings) -> None:
    assert settings_problems(ready) == []
    assert stage_problems(ready, "train") == []
    assert node_problems(ready.stages["train"]) == []


def test_all_at_once(ready: Settings, tmp_path: Path) -> None:
    _save_factors(ready, rope_base=777.0)
    (tmp_path / "long.bin").unlink()
    write_manifest(ready.run / "data", Path("other.json"), "0")
    found = "\n".join(stage_problems(ready, "train"))
    assert "factors.json: rope_base: " in found
    assert "long.bin: no such file" in found
    assert "manifest.json: tokenizer: the data was made with other.json, which is not" in found
    assert len(found.splitlines()) == 3


def test_a_mix(ready: Settings, write: Write, tmp_path: Path) -> None:
    settings = load_settings(write(("pools = [", 'mix = "{here}/mix.json"\npools = [')))
    assert "mix.json: cannot be read" in "\n".join(stage_problems(settings, "train"))
    pool = {"path_prefix": "web/short", "window": "short", "weight": 1}
    write_json(tmp_path / "mix.json", {"repeat": False, "pools": [pool]})
    (missing_bin, missing_idx) = stage_problems(settings, "train")
    assert "web/short.bin: no such file" in missing_bin
    assert "web/short.idx: no such file" in missing_idx
    assert settings.run == ready.run


def test_factors_for_a_shorter_target(ready: Settings) -> None:
    _save_factors(ready, target_length=400)
    assert stage_problems(ready, "train") == [
        f"{ready.run}/search/factors.json: target_length: 400 is shorter than the settings' 512"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target_length = 512", "target_length = 514", "514 tokens do not divide by 8"),
        ("target_length = 512", "target_length = 256", "256 is not longer than the model's own 256"),
        ("tensor_parallel = 2\n", "tensor_parallel = 8\n", "attention heads do not divide by 8"),
        ("tensor_parallel = 2\n", "pipeline_parallel = 8\n", "layers do not divide by 8"),
        (f'"{BASE}"', '"nowhere"', "nowhere/config.json: cannot be read"),
        ("books/train", "books/trian", "model.books: "),
        ('python = "python"', 'python = "p"\nnetwork = "none.sh"', "environment.network: "),
    ],
)
def test_settings(write: Write, old: str, new: str, message: str) -> None:
    changes = [(old, new)]
    if "= 8" in new:
        changes.append(("context_parallel = 2\n", ""))
    found = settings_problems(load_settings(write(*changes)))
    assert len([problem for problem in found if message in problem]) == 1, found


def test_disk(ready: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (problem,) = stage_problems(ready, "train")
    assert problem.startswith(f"{ready.run}: 0.0 GB free, train needs about ")
    assert stage_problems(ready, "evaluate") == []


def test_gpus_and_packages(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(write(("[stages.search]\n", "[stages.search]\ngpus_per_node = 9\n")))
    monkeypatch.setattr(preflight, "_gpus", lambda: ["H100"] * 4)
    versions = {"megatron-longrope2": "0", "torch": "2.1.0", "numpy": None}
    monkeypatch.setattr(preflight, "_version", lambda name: versions.get(name, "99"))
    found = "\n".join(node_problems(settings.stages["search"]))
    assert "torch sees 4 GPUs for 9 processes" in found
    assert "torch is 2.1.0; torch>=2.11 is needed" in found
    assert "numpy is not installed; numpy is needed" in found
    assert "megatron-core" in found


def test_a_cut_off_checkpoint(tmp_path: Path) -> None:
    from megatron_longrope2.checkpoint.conversion import import_hf
    from megatron_longrope2.checkpoint.settings import ImportSettings

    import_hf(ImportSettings(BASE, tmp_path / "base"))
    assert list(preflight._checkpoint_problems(tmp_path / "base")) == []
    (file,) = (tmp_path / "base/release").glob("*.distcp")
    with file.open("r+b") as stream:
        stream.truncate(1000)
    (problem,) = preflight._checkpoint_problems(tmp_path / "base")
    assert "is 1000 bytes where the checkpoint needs" in problem
    file.unlink()
    (problem,) = preflight._checkpoint_problems(tmp_path / "base")
    assert "is 0 bytes" in problem
