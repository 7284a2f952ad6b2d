"""`longrope2 factors` as a user calls it: every command once, and what bad input gets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope2.cli import run_main
from megatron_longrope2.rope import load_factors, make_factors, with_longrope_attention

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "vocab_size": 7,
}
MODEL = ["--rope-base", "10000", "--rotary-dim", "64", "--original-length", "256", "--target-length", "2048"]
NTK = make_factors("ntk", rope_base=1e4, rotary_dim=64, original_length=256, target_length=2048)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["longrope2", "factors", *words])
    try:
        run_main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def error(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def test_make(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "make", "--method", "ntk", *MODEL, "--output", "ntk.json") == 0
    assert load_factors(place / "ntk.json") == NTK
    assert "out of distribution at 2048 tokens: no dimension" in capsys.readouterr().out
    ramp = ("--method", "yarn", "--beta-fast", "8", "--beta-slow", "2", "--no-truncate")
    assert call(monkeypatch, "make", *ramp, *MODEL, "--output", "yarn.json") == 0
    expected = make_factors("yarn", **NTK.facts, beta_fast=8, beta_slow=2, truncate=False)
    assert load_factors(place / "yarn.json") == expected


def test_make_from_a_model_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["make", "--hf-dir", "model", "--target-length", "2048", "--output", "f.json"]
    assert call(monkeypatch, *words, "--method", "ntk") == 0
    assert load_factors(place / "f.json") == NTK
    yarn = ["--method", "yarn-rcd", "--critical-dim", "10"]
    assert call(monkeypatch, *words, *yarn, "--attention-factor") == 0
    assert load_factors(place / "f.json") == make_factors(
        "yarn-rcd",
        rope_base=1e4,
        rotary_dim=64,
        original_length=256,
        target_length=2048,
        critical_dim=10,
        attention_factor=True,
    )


def test_show_and_plot(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "show", "llama3-8b-128k", "--plot", "f.png") == 0
    assert "theoretical critical" in capsys.readouterr().out
    assert call(monkeypatch, "show", "llama3-8b-128k", "--cosine", "40", "--plot", "c.png") == 0
    assert (place / "f.png").stat().st_size > 1000
    assert (place / "c.png").read_bytes() != (place / "f.png").read_bytes()


def test_show_several(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    NTK.save(place / "a/f.json")
    NTK.save(place / "b/f.json")
    assert call(monkeypatch, "show", "a/f.json", "b/f.json", "llama3-8b-128k", "--plot", "c.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a/f.json", "b/f.json", "llama3-8b-128k"]
    assert (place / "c.png").exists()


def test_convert_every_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NTK.save(place / "f.json")
    assert call(monkeypatch, "convert", "f.json", "--output", "f.csv") == 0
    words = ["convert", "f.csv", "--hf-dir", "model", "--target-length", "2048", "--output", "back.json"]
    assert call(monkeypatch, *words) == 0
    assert load_factors(place / "back.json").differences(NTK) == []
    assert call(monkeypatch, "convert", "f.json", "--to", "hf", "--output", "fields.json") == 0
    assert "vocab_size" not in json.loads((place / "fields.json").read_text())
    attention = ["convert", "f.json", "--longrope-attention-factor", "--output", "attention.json"]
    assert call(monkeypatch, *attention) == 0
    assert load_factors(place / "attention.json") == with_longrope_attention(NTK)
    words = ["convert", "f.json", "--to", "hf", "--hf-dir", "model", "--output", "new/config.json"]
    assert call(monkeypatch, *words) == 0
    assert json.loads((place / "new/config.json").read_text())["vocab_size"] == 7
    assert load_factors(place / "new").differences(NTK) == []
    assert call(monkeypatch, "convert", "new", "--output", "again.csv") == 0
    assert (place / "again.csv").read_text() == (place / "f.csv").read_text()


def test_check_model_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    NTK.save(place / "f.json")
    assert call(monkeypatch, "check", "f.json", "--hf-dir", "model") == 0
    assert "model/config.json: fits; carries no factors yet" in capsys.readouterr().out
    assert call(monkeypatch, "check", "llama3-8b-128k", "--hf-dir", "model") == 2
    assert "rope_base: the factors are for 500000, the model has 10000" in error(capsys)


@pytest.fixture
def checkpoint(place: Path) -> Path:
    """A torch_dist checkpoint of a tiny model that holds the NTK factors."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatron_longrope2.checkpoint.conversion import import_hf
    from megatron_longrope2.checkpoint.settings import ImportSettings

    sizes = {"intermediate_size": 64, "num_hidden_layers": 1, "num_key_value_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**(CONFIG | sizes)))
    (place / "model/config.json").write_text(json.dumps(model.config.to_dict()))
    save_file(model.state_dict(), place / "model/model.safetensors", metadata={"format": "pt"})
    NTK.save(place / "f.json")
    import_hf(ImportSettings(place / "model", place / "checkpoint", rope_factors=place / "f.json"))
    return place / "checkpoint"


def test_check_megatron_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", "f.json", "--checkpoint", "checkpoint") == 0
    assert "checkpoint: fits; carries these factors" in capsys.readouterr().out
    assert call(monkeypatch, "make", "--method", "pi", *MODEL, "--output", "pi.json") == 0
    assert call(monkeypatch, "check", "pi.json", "--checkpoint", str(checkpoint)) == 2
    assert "checkpoint: long_factor: dimension 31 is 8 against" in error(capsys)
    assert call(monkeypatch, "check", "llama3-8b-128k", "--checkpoint", "checkpoint") == 2
    assert "checkpoint: rope_base: the factors are for 500000" in error(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "--method", "pi", "--rope-base", "1e4"], "--rotary-dim: missing; give it, or --hf-dir"),
        (["make", "--method", "pi", "--hf-dir", "model"], "--target-length: missing"),
        (
            ["make", "--method", "pi", *MODEL, "--target-length", "256"],
            "target_length: 256 is not larger than",
        ),
        (
            ["make", "--method", "ntk-rcd", *MODEL],
            "method ntk-rcd needs one; the candidates for this model are 5 to 13",
        ),
        (["make", "--method", "pi", "--hf-dir", "nowhere"], "nowhere/config.json: cannot be read"),
    ],
)
def test_make_refusals(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, *words, "--output", "out.json") == 2
    assert message in error(capsys)
    assert [item.name for item in place.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nothing"], "nothing: no such factor file, nor a published set"),
        (["show", "model"], "model/config.json: rope_type: default, not rescaled"),
        (["show", "llama3-8b-128k", "--cosine", "3"], "--cosine: needs --plot"),
        (["show", "f.csv"], "f.csv: rope_base: a CSV does not hold it"),
        (
            ["show", "llama3-8b-128k", "--rope-base", "10000"],
            "rope_base: the factors are for 500000, the model has 10000",
        ),
        (
            ["convert", "yarn.json", "--to", "hf", "--output", "c.json"],
            "attention_factor: short 1 and long 1.20794",
        ),
    ],
)
def test_other_refusals(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (place / "f.csv").write_text("1\n2\n")
    assert (
        call(monkeypatch, "make", "--method", "yarn", *MODEL, "--attention-factor", "--output", "yarn.json")
        == 0
    )
    assert call(monkeypatch, *words) == 2
    assert message in error(capsys)


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    """`longrope2 factors show ... | head -1`."""
    command = [sys.executable, "-m", "megatron_longrope2", "factors", "show", "llama3-8b-128k"]
    reader, writer = os.pipe()
    os.close(reader)
    root = Path(__file__).parents[2]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=root, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")
