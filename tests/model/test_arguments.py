"""From the command line to a model configuration."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.training.global_vars import destroy_global_vars

from megatron_longrope2.errors import InputError
from megatron_longrope2.model import arguments, layer_specs
from megatron_longrope2.model.arguments import factors_of, model_config, parse_model_arguments
from megatron_longrope2.model.attention import TorchDotProductAttention
from megatron_longrope2.model.builder import LongRoPE2ModelConfig
from megatron_longrope2.model.layer_specs import longrope2_layer_spec
from megatron_longrope2.model.norm import RMSNorm
from megatron_longrope2.model.self_attention import LongRoPE2SelfAttention
from megatron_longrope2.rope import make_factors

OPTIONS = """
    --num-layers 2 --hidden-size 64 --num-attention-heads 4 --kv-channels 16 --ffn-hidden-size 96 --swiglu
    --normalization RMSNorm --disable-bias-linear --position-embedding-type rope --rotary-base 10000
    --max-position-embeddings 64 --seq-length 256 --vocab-size 256 --tokenizer-type NullTokenizer
    --micro-batch-size 1 --train-iters 1 --lr 1e-3
""".split()

Parse = Callable[..., LongRoPE2ModelConfig]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parse]:
    def parse_(*options: object) -> LongRoPE2ModelConfig:
        monkeypatch.setattr(sys, "argv", ["command", *OPTIONS, *map(str, options)])
        args = parse_model_arguments()
        assert factors_of(args) == model_config(args).rope_factors
        return model_config(args)

    yield parse_
    destroy_global_vars()
    destroy_num_microbatches_calculator()


def factor_file(folder: Path, **changes: object) -> Path:
    settings = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": 64, "target_length": 256} | changes
    make_factors("ntk", **settings).save(folder / "factors.json")
    return folder / "factors.json"


def test_without_factors_nothing_is_rescaled(parse: Parse) -> None:
    config = parse()
    assert config.rope_factors.method == "none"
    assert config.rope_factors.original_length == 64
    assert set(config.rope_factors.long_factor) == {1.0}


def test_factors_from_a_file(parse: Parse, tmp_path: Path) -> None:
    config = parse("--rope-factors", factor_file(tmp_path))
    assert config.rope_factors.method == "ntk"
    assert config.get_builder_cls().__name__ == "LongRoPE2ModelBuilder"


def test_half_rotary_models(parse: Parse, tmp_path: Path) -> None:
    config = parse("--rope-factors", factor_file(tmp_path, rotary_dim=8), "--rotary-percent", "0.5")
    assert config.rope_factors.rotary_dim == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rotary_dim": 32},
            "--rope-factors: rotary_dim: the factors are for 32, the model has 16",
        ),
        ({"rope_base": 500000.0}, "rope_base"),
    ],
)
def test_another_models_factors_are_refused(
    parse: Parse, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse("--rope-factors", factor_file(tmp_path, **changes))


def test_contradicting_original_length_is_refused(parse: Parse, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="original_length: 64 is not the model's 128"):
        parse("--rope-factors", factor_file(tmp_path), "--original-length", 128)


def test_missing_factor_file_is_named(parse: Parse) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        parse("--rope-factors", "nowhere.json")


@pytest.mark.parametrize("option", ["--load", "--pretrained-checkpoint"])
def test_missing_checkpoint_is_named(parse: Parse, tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no Megatron checkpoint there.*give {option} a folder"):
        parse(option, tmp_path)


def test_upstreams_bare_asserts_become_one_line(parse: Parse) -> None:
    with pytest.raises(InputError, match=r"Megatron's arguments: .*save_interval is not None"):
        parse("--save", "somewhere")


def test_a_gpu_without_apex_and_transformer_engine(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "has_gpu", lambda: True)
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="or pass --transformer-impl local"):
        parse()
    transformer = parse("--transformer-impl", "local").transformer
    assert not transformer.gradient_accumulation_fusion
    assert not transformer.apply_rope_fusion


def test_the_torch_spec_has_our_modules_in_every_layer(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_specs, "get_num_layers_to_build", lambda *_: 2)  # one pipeline stage
    spec = longrope2_layer_spec(parse("--qk-layernorm"))
    assert isinstance(spec, TransformerBlockSubmodules)
    assert spec.layer_norm is RMSNorm
    assert len(spec.layer_specs) == 2
    layer = spec.layer_specs[0].submodules
    assert layer.self_attention.module is LongRoPE2SelfAttention
    assert layer.self_attention.submodules.core_attention is TorchDotProductAttention
    assert layer.input_layernorm is layer.pre_mlp_layernorm is RMSNorm
    assert layer.self_attention.submodules.q_layernorm is RMSNorm
