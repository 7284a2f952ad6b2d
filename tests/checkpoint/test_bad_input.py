"""What cannot be converted exactly is refused in one line, and nothing is left half-written."""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_longrope2 import files
from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from megatron_longrope2.cli import run_main
from megatron_longrope2.errors import InputError
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import ORIGINAL, rope_changes, save_model

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def good_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("good") / "hf", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def good_megatron(good_hf: Path) -> Path:
    import_hf(ImportSettings(good_hf, good_hf.parent / "megatron"))
    return good_hf.parent / "megatron"


@pytest.fixture
def hf(good_hf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_hf, tmp_path / "hf"))


@pytest.fixture
def megatron(good_megatron: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_megatron, tmp_path / "megatron"))


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def assert_import_refused(hf: Path, match: str, **options: Any) -> None:
    out = hf.parent / "out"
    with pytest.raises(InputError, match=match) as caught:
        import_hf(ImportSettings(hf, out, **options))
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(hf.parent.glob(".out*"))


def assert_export_refused(megatron: Path, match: str, **options: Any) -> None:
    out = megatron.parent / "out"
    with pytest.raises(InputError, match=match) as caught:
        export_hf(ExportSettings(megatron, out, **options))
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not list(megatron.parent.glob(".out*"))


def test_missing_tensors_are_named(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors.pop(Q_PROJ))
    assert_import_refused(hf, f"{Q_PROJ}: missing")


def test_extra_tensors_are_named(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors.update({"model.layers.0.adapter": torch.ones(2)}))
    assert_import_refused(hf, r"model.layers.0.adapter: not in a llama model")


def test_old_rotary_buffers_are_ignored(hf: Path) -> None:
    change_weights(
        hf, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    import_hf(ImportSettings(hf, hf.parent / "out"))


def test_wrong_shape_is_named(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors.update({Q_PROJ: torch.ones(64, 63)}))
    assert_import_refused(hf, rf"{Q_PROJ}: has shape \[64, 63\], config.json asks for \[64, 64\]")


def test_tied_output_layer_that_differs(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors.update({"lm_head.weight": torch.ones(515, 64)}))
    assert_import_refused(hf, "lm_head.weight: differs from the embedding")


def test_tied_output_layer_that_is_the_same(hf: Path) -> None:
    change_weights(
        hf, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    import_hf(ImportSettings(hf, hf.parent / "out"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_weights_unless_allowed(hf: Path, bad: float) -> None:
    change_weights(hf, lambda tensors: tensors[Q_PROJ].view(-1)[-1:].fill_(bad))
    assert_import_refused(hf, f"{Q_PROJ}: holds NaN or infinity; pass --allow-nonfinite")
    out = hf.parent / "out"
    import_hf(ImportSettings(hf, out, allow_nonfinite=True))
    with pytest.raises(InputError, match=r"linear_qkv\.weight, layer 1: holds NaN or infinity"):
        export_hf(ExportSettings(out, hf.parent / "back"))
    export_hf(ExportSettings(out, hf.parent / "back", allow_nonfinite=True))


def test_dtype_that_is_too_narrow(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors[Q_PROJ].view(-1)[-1:].fill_(1e6))
    assert_import_refused(hf, f"{Q_PROJ}: holds NaN or infinity in float16", dtype="float16")
    import_hf(ImportSettings(hf, hf.parent / "out"))
    with pytest.raises(InputError, match="layer 1: holds NaN or infinity in float16"):
        export_hf(ExportSettings(hf.parent / "out", hf.parent / "back", dtype="float16"))


def test_mixed_dtypes_need_a_choice(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].half()}))
    assert_import_refused(hf, f"{Q_PROJ}: torch.float16 beside torch.float32; .* give --dtype")
    import_hf(ImportSettings(hf, hf.parent / "out", dtype="float32"))


def test_integer_weights(hf: Path) -> None:
    change_weights(hf, lambda tensors: tensors.update({Q_PROJ: torch.ones(64, 64, dtype=torch.int8)}))
    assert_import_refused(hf, f"{Q_PROJ}: dtype I8 is not supported")


@pytest.mark.parametrize("keep", [0, 5, 300, 100_000])
def test_truncated_safetensors(hf: Path, keep: int) -> None:
    path = hf / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_import_refused(hf, "model.safetensors: damaged or truncated")


def test_shard_that_the_index_names_is_missing(hf: Path) -> None:
    (hf / "model.safetensors").unlink()
    index = {"weight_map": {Q_PROJ: "model-00001-of-00002.safetensors"}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_import_refused(hf, "model-00001-of-00002.safetensors: named in .* but missing")


def test_no_safetensors(hf: Path) -> None:
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    assert_import_refused(hf, "neither model.safetensors nor")


def test_no_such_folder(tmp_path: Path) -> None:
    assert_import_refused(tmp_path / "nothing", "config.json: cannot be read")


def test_unknown_architecture(hf: Path) -> None:
    change_config(hf, model_type="mamba")
    assert_import_refused(hf, "model_type: 'mamba' is not supported; known are llama, mistral, phi3")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("hidden_act", "gelu", "hidden_act: 'gelu' cannot be converted"),
        ("attention_bias", True, "mlp_bias: False beside attention_bias True cannot be converted"),
        ("num_hidden_layers", "two", "not a valid llama configuration"),
        (
            "vocab_size",
            516,
            r"model.embed_tokens.weight: has shape \[515, 64\], config.json asks for \[516, 64\]",
        ),
    ],
)
def test_configuration_that_does_not_fit(hf: Path, field: str, value: Any, match: str) -> None:
    change_config(hf, **{field: value})
    assert_import_refused(hf, match)


@pytest.mark.parametrize("kind", ["dynamic", "spiral"])
def test_unknown_rope_type(hf: Path, kind: str) -> None:
    change_config(
        hf, rope_parameters=None, rope_scaling={"rope_type": kind, "factor": 4.0}, rope_theta=10000.0
    )
    assert_import_refused(hf, "rope_type")


def test_sliding_window_inside_the_original_length(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", "mistral", sliding_window=32)
    assert_import_refused(hf, "sliding_window: 32 is shorter than the original length 64.*at most 33")
    import_hf(ImportSettings(hf, tmp_path / "out", original_length=33))


def test_sliding_window_is_gone_after_extension(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", "mistral", sliding_window=ORIGINAL)
    longrope2_factors(tmp_path, rotary_dim=32)
    import_hf(ImportSettings(hf, tmp_path / "megatron", rope_factors=tmp_path / "factors.json"))
    export_hf(ExportSettings(tmp_path / "megatron", tmp_path / "back"))
    assert json.loads((tmp_path / "back/config.json").read_text())["sliding_window"] is None


def test_factors_of_another_model(hf: Path) -> None:
    longrope2_factors(hf, rotary_dim=32)
    assert_import_refused(hf, "rotary_dim: the factors are for 32", rope_factors=hf / "factors.json")


def test_factors_that_forget_the_rope_a_model_has(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", **rope_changes("llama3"))
    ours = longrope2_factors(tmp_path)
    file = tmp_path / "factors.json"
    assert_import_refused(hf, "short_factor: .*config.json has rope type llama3", rope_factors=file)
    own = HFConfig.read(hf).rope.factors
    assert own is not None
    replace(ours, short_factor=own.short_factor).save(file)
    import_hf(ImportSettings(hf, tmp_path / "out", rope_factors=file))


def test_original_length_that_contradicts(tmp_path: Path) -> None:
    hf = save_model(tmp_path / "hf", **rope_changes("yarn"))
    assert_import_refused(hf, "64 contradicts --original-length 65", original_length=65)


def test_output_that_exists(hf: Path, megatron: Path) -> None:
    with pytest.raises(InputError, match="exists already and is not empty"):
        import_hf(ImportSettings(hf, hf))
    with pytest.raises(InputError, match="exists already and is not empty"):
        export_hf(ExportSettings(megatron, hf))
    assert (hf / "model.safetensors").exists()


def test_no_space(hf: Path, megatron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(hf)._replace(free=1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    assert_import_refused(hf, "needs [0-9.]+ GB, 1e-06 GB are free")
    assert_export_refused(megatron, "needs [0-9.]+ GB, 1e-06 GB are free")


def test_space_that_runs_out_on_the_way(hf: Path, megatron: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert_import_refused(hf, "cannot be written")
        assert_export_refused(megatron, "cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_export_refused(tmp_path / "empty", "no torch_dist checkpoint there")


def test_damaged_metadata(megatron: Path) -> None:
    (megatron / "release/.metadata").write_bytes(b"\x80\x04nonsense")
    assert_export_refused(megatron, "metadata: missing or damaged")


def attack(folder: Path) -> Any:
    """An object whose pickle makes a folder when it is loaded."""

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(folder),))

    return Attack()


def attack_through_an_allowed_module(folder: Path) -> bytes:
    """The same by way of a module that `.metadata` may name, whose imports a dotted name reaches."""

    def text(value: str) -> bytes:
        return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()

    function = text("torch.distributed.checkpoint.filesystem") + text("os.mkdir") + pickle.STACK_GLOBAL
    return pickle.PROTO + b"\4" + function + text(str(folder)) + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP


def test_metadata_that_would_run_code(megatron: Path, tmp_path: Path) -> None:
    attacked = tmp_path / "attacked"
    for data in (pickle.dumps(attack(attacked)), attack_through_an_allowed_module(attacked)):
        (megatron / "release/.metadata").write_bytes(data)
        assert_export_refused(megatron, "metadata: missing or damaged .not a table of contents")
        assert not attacked.exists()
    pickle.loads(data)
    assert attacked.exists()


@pytest.mark.parametrize("file", ["common.pt", "the checkpoint's object"])
def test_arguments_that_would_run_code(megatron: Path, tmp_path: Path, file: str) -> None:
    state = {"args": attack(tmp_path / "attacked")}
    if file == "common.pt":
        torch.save(state, megatron / "release/common.pt")
    else:
        info = MegatronTensors(megatron).metadata.storage_data[MetadataIndex("common_state/shard_0_1")]
        data = io.BytesIO()
        torch.save([state], data)
        with (megatron / "release" / info.relative_path).open("r+b") as stream:
            stream.seek(info.offset)
            stream.write(data.getvalue().ljust(info.length, b"\0"))
    assert_export_refused(megatron, "args: missing|common_state: missing or damaged")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("seed", range(8))
def test_overwritten_metadata(seed: int, megatron: Path) -> None:
    path = megatron / "release/.metadata"
    data = bytearray(path.read_bytes())
    numbers = random.Random(seed)
    start = numbers.randrange(len(data) - 40)
    data[start : start + 40] = numbers.randbytes(40)
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        export_hf(ExportSettings(megatron, megatron.parent / "out"))
    assert not list(megatron.parent.glob(".out*"))


def test_truncated_data(megatron: Path) -> None:
    path = megatron / "release/__0_0.distcp"
    data = path.read_bytes()
    path.write_bytes(data[:200_000])
    assert_export_refused(megatron, "common_state: missing or damaged")
    path.write_bytes(bytes(100_000) + data[100_000:])
    assert_export_refused(megatron, "embeddings.weight: missing or damaged")


def test_base_folder_is_gone(megatron: Path, good_hf: Path) -> None:
    shutil.rmtree(megatron / "tokenizer")
    moved = good_hf.parent / "megatron/tokenizer"
    moved.rename(moved.with_name("elsewhere"))
    try:
        assert_export_refused(megatron, "tokenizer_model: no config.json at .* give --base-dir")
        export_hf(ExportSettings(megatron, megatron.parent / "out", base_dir=good_hf))
    finally:
        moved.with_name("elsewhere").rename(moved)


def test_base_of_another_model(megatron: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", intermediate_size=96, tie_word_embeddings=True)
    assert_export_refused(megatron, "intermediate_size: 96 is not the 88 of", base_dir=other)
    untied = save_model(tmp_path / "untied")
    assert_export_refused(megatron, "tie_word_embeddings: False is not the True of", base_dir=untied)


def test_base_of_another_architecture(megatron: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", "qwen2_tied")
    assert_export_refused(megatron, "linear_qkv.bias: missing; is it a whole qwen2 model", base_dir=other)


def test_split_attention_factors_need_a_flag(megatron: Path, tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    longrope2_factors(tmp_path)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"attention_factor": {"short": 1.0, "long": 1.2}})
    )
    assert_export_refused(megatron, "attention_factor: short 1 and long 1.2 differ", rope_factors=path)
    export_hf(ExportSettings(megatron, tmp_path / "back", rope_factors=path, split_attention_factor=True))
    rope = json.loads((tmp_path / "back/config.json").read_text())["rope_parameters"]
    assert (rope["short_mscale"], rope["long_mscale"]) == (1.0, 1.2)


@pytest.mark.parametrize(("verb", "option"), [("import", "--hf-dir"), ("export", "--load-dir")])
def test_command_line_ends_with_one_line_and_status_2(
    verb: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["longrope2", verb, option, str(tmp_path / "empty"), "--save-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        run_main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
