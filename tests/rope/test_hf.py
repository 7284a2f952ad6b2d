"""Hugging Face configs against transformers' own functions, round trips in both schemas, every refusal."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import AttentionFactor, RopeFactors, load_factors, make_factors
from megatron_longrope2.rope.frequencies import angles
from megatron_longrope2.rope.hf import (
    factors_to_hf,
    merge_into_hf,
    parse_rope,
    read_config,
)
from megatron_longrope2.rope.options import unscaled_model

transformers.logging.set_verbosity_error()

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 8.0,
    "original_max_position_embeddings": 256,
    "long_factor": np.linspace(1, 12, 32).tolist(),
    "short_factor": [1.0] * 32,
}


def config(scaling: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return copy.deepcopy(LLAMA | {"max_position_embeddings": 2048, "rope_parameters": scaling} | fields)


def transformers_rope(value: dict[str, Any], length: int) -> tuple[np.ndarray, float]:
    """inv_freq (float32) and attention factor that transformers takes from a config at a length."""
    read = LlamaConfig(**copy.deepcopy(value))
    inv_freq, attention = ROPE_INIT_FUNCTIONS[read.rope_parameters["rope_type"]](read, "cpu", seq_len=length)
    return inv_freq.numpy(), attention


@st.composite
def scalings(draw: st.DrawFn, rope_type: str) -> dict[str, Any]:
    half = draw(st.integers(8, 128))
    original = draw(st.integers(512, 65536))
    factor = draw(st.floats(1.01, 128))
    scaling: dict[str, Any] = {"rope_type": rope_type, "factor": factor}
    if rope_type != "linear":
        scaling["original_max_position_embeddings"] = original
    if rope_type == "yarn":
        scaling |= {"beta_fast": draw(st.floats(5, 64)), "beta_slow": draw(st.floats(0.5, 4))}
        scaling |= {"truncate": draw(st.booleans())}
        scaling |= draw(
            st.sampled_from([{}, {"mscale": 0.7, "mscale_all_dim": 1.0}, {"attention_factor": 1.1}])
        )
    if rope_type == "llama3":
        low = draw(st.floats(0.5, 2))
        scaling |= {"low_freq_factor": low, "high_freq_factor": low + draw(st.floats(0.5, 6))}
    if rope_type == "longrope":
        vectors = st.lists(st.floats(1, 200), min_size=half, max_size=half).map(sorted)
        scaling |= {"long_factor": draw(vectors), "short_factor": draw(vectors)}
    length = max(int(original * factor), original + 1)
    base = 10 ** draw(st.floats(3, 7.5))
    return config(scaling, head_dim=2 * half, max_position_embeddings=length, rope_theta=base)


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "llama3", "longrope"])
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_equals_transformers(rope_type: str, data: st.DataObject) -> None:
    """To float32 rounding in both windows (largest of 3000 random configs: 0.6e-6, llama3 1.2e-6).

    transformers' exponents are float32, so a frequency is off by ln(base) * 2^-24, at most 1.1e-6, of itself.
    In the blends of yarn and llama3 the rounding is of the frequency that is not rescaled; a factor of 100
    makes it 100 times as large against the rescaled one, so there the error is taken relative to the former.
    """
    value = data.draw(scalings(rope_type))
    factors = parse_rope(value, "config.json").factors
    assert factors is not None
    for window, length in (("short", 1), ("long", factors.original_length + 1)):
        theirs, attention = transformers_rope(value, length)
        ours = factors.inv_freq(window)  # type: ignore[arg-type]
        unit = angles(factors.rope_base, factors.rotary_dim) if rope_type in ("yarn", "llama3") else ours
        assert np.max(np.abs(ours - theirs) / unit) < 3e-6
        assert getattr(factors.attention_factor, window) == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("base", "dim", "original", "scale"), [(1e4, 64, 256, 8), (5e5, 128, 8192, 16)])
def test_yarn_equals_megatron(truncate: bool, base: float, dim: int, original: int, scale: int) -> None:
    """Megatron-Core rounds the ramp's ends outwards by default, as `truncate` does; else both keep them."""
    pytest.importorskip("megatron.core")
    from megatron_longrope2 import device

    device.install()
    from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding

    theirs = YarnRotaryEmbedding(
        kv_channels=dim,
        rotary_base=base,
        scaling_factor=scale,
        original_max_position_embeddings=original,
        correction_range_round_to_int=truncate,
        use_cpu_initialization=True,
    )
    table, attention = theirs.get_emb(2)
    factors = make_factors(
        "yarn",
        rope_base=base,
        rotary_dim=dim,
        original_length=original,
        target_length=original * scale,
        truncate=truncate,
        attention_factor=True,
    )
    inv_freq = table[1, 0, 0, : dim // 2].cpu().numpy()  # the angles of position 1
    assert np.max(np.abs(inv_freq - factors.inv_freq("long")) / angles(base, dim)) < 2e-6
    assert attention == pytest.approx(factors.attention_factor.long)


def test_methods_agree_with_configs() -> None:
    """`make_factors` and a config of the same method give one vector."""
    model: dict[str, Any] = {
        "rope_base": 10000,
        "rotary_dim": 64,
        "original_length": 256,
        "target_length": 2048,
    }
    linear = parse_rope(config({"rope_type": "linear", "factor": 8.0}), "c").factors
    assert linear is not None
    assert (linear.method, linear.original_length, linear.target_length) == ("linear", 256, 2048)
    assert linear.long_factor == make_factors("pi", **model).long_factor
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}
    yarn, made = (
        parse_rope(config(scaling), "c").factors,
        make_factors("yarn", **model, attention_factor=True),
    )
    assert yarn is not None
    assert yarn.long_factor == yarn.short_factor == made.long_factor
    assert yarn.attention_factor == AttentionFactor(made.attention_factor.long, made.attention_factor.long)


def test_yarn_config_that_keeps_the_original_length() -> None:
    """Qwen's model card: the factor is added, `max_position_embeddings` stays."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    factors = parse_rope(config(scaling, max_position_embeddings=32768), "c").factors
    assert factors is not None
    assert (factors.original_length, factors.target_length) == (32768, 131072)


@pytest.mark.parametrize("value", [LLAMA, config({"rope_type": "default"}), LLAMA | {"rope_scaling": None}])
def test_default_rope_has_no_factors(value: dict[str, Any]) -> None:
    assert parse_rope(value, "c").factors is None
    assert parse_rope(value, "c").rope_base == 10000


def test_partial_rotary_dimension() -> None:
    value = config({"rope_type": "default", "partial_rotary_factor": 0.75}, head_dim=128)
    rope = parse_rope(value, "c")
    assert (rope.head_dim, rope.rotary_dim) == (128, 96)
    assert parse_rope(LLAMA | {"partial_rotary_factor": 0.5}, "c").rotary_dim == 32


@pytest.mark.parametrize("schema", ["rope_parameters", "rope_scaling"])
def test_reads_each_schema(schema: str) -> None:
    value = LLAMA | {"max_position_embeddings": 2048, schema: dict(LONGROPE)}
    factors = parse_rope(value, "c").factors
    assert factors is not None
    assert factors.long_factor == tuple(LONGROPE["long_factor"])  # type: ignore[arg-type]
    default = math.sqrt(1 + math.log(8) / math.log(256))
    assert factors.attention_factor.long == factors.attention_factor.short == pytest.approx(default)


def test_reads_the_old_key_and_the_top_level_length() -> None:
    scaling = {name: item for name, item in LONGROPE.items() if name != "original_max_position_embeddings"}
    scaling["type"] = scaling.pop("rope_type")
    value = LLAMA | {"max_position_embeddings": 2048, "rope_scaling": scaling}
    factors = parse_rope(value | {"original_max_position_embeddings": 256}, "c").factors
    assert factors is not None
    assert factors.original_length == 256


def test_llama3_8b_default_attention_factor_where_the_config_is_silent() -> None:
    """transformers applies sqrt(1 + ln 16 / ln 8192) = 1.1435 where the config is silent."""
    written = LLAMA | {"head_dim": 128} | factors_to_hf(load_factors("llama3-8b-128k"))
    for schema in ("rope_scaling", "rope_parameters"):
        for name in ("attention_factor", "short_mscale", "long_mscale"):
            del written[schema][name]
    factors = parse_rope(written, "c").factors
    assert factors is not None
    assert factors.attention_factor.short == pytest.approx(1.1435, abs=5e-5)


def test_written_config_has_what_each_reader_looks_for() -> None:
    """One config that transformers 4 and 5 and vLLM read alike."""
    published = load_factors("llama3-8b-128k")
    written = factors_to_hf(published)
    shared = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 64,
        "long_factor": list(published.long_factor),
        "factor": 16.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "short_mscale": 1.0,
        "long_mscale": 1.0,
    }
    assert written == {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rope_scaling": shared | {"type": "longrope"},
        "rope_parameters": shared | {"rope_theta": 500000.0},
    }
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize("schema", ["rope_scaling", "rope_parameters", "both"])
def test_round_trip_and_transformers_reads_it(schema: str) -> None:
    factors = make_factors("ntk", rope_base=1e6, rotary_dim=64, original_length=256, target_length=2048)
    value = merge_into_hf(LLAMA | {"rope_theta": 1e6}, factors, "c")
    for other in {"rope_scaling", "rope_parameters"} - {schema} if schema != "both" else ():
        del value[other]
    read = parse_rope(value, "c").factors
    assert read is not None
    assert read.to_dict() | {"method": "ntk", "provenance": {}} == factors.to_dict()
    for window, length in (("short", 256), ("long", 257)):
        inv_freq, attention = transformers_rope(value, length)
        assert inv_freq == pytest.approx(factors.inv_freq(window), rel=2e-6)  # type: ignore[arg-type]
        assert attention == 1.0


def test_partial_rotary_round_trip_through_phi3() -> None:
    factors = make_factors("yarn", rope_base=10000, rotary_dim=48, original_length=256, target_length=2048)
    base = LLAMA | {"model_type": "phi3", "partial_rotary_factor": 0.75, "pad_token_id": 0}
    value = merge_into_hf(base, factors, "c")
    assert value["partial_rotary_factor"] == value["rope_parameters"]["partial_rotary_factor"] == 0.75
    read = parse_rope(value, "c").factors
    assert read is not None
    assert (read.rotary_dim, read.long_factor) == (48, factors.long_factor)
    written = Phi3Config(**copy.deepcopy(value))
    inv_freq, _ = ROPE_INIT_FUNCTIONS["longrope"](written, "cpu", seq_len=257)
    assert inv_freq.numpy() == pytest.approx(factors.inv_freq("long"), rel=2e-6)


@given(head_dim=st.integers(2, 512), data=st.data())
def test_every_partial_dimension_survives_the_fraction(head_dim: int, data: st.DataObject) -> None:
    rotary_dim = 2 * data.draw(st.integers(1, head_dim // 2))
    factors = RopeFactors("x", 1e4, rotary_dim, 256, 512, None, (1.0,) * (rotary_dim // 2))
    written = factors_to_hf(factors, head_dim=head_dim)
    assert int(head_dim * written.get("partial_rotary_factor", 1.0)) == rotary_dim


def test_split_attention_factors_need_permission() -> None:
    model: dict[str, Any] = {
        "rope_base": 1e4,
        "rotary_dim": 64,
        "original_length": 256,
        "target_length": 2048,
    }
    factors = make_factors("yarn", **model, attention_factor=True)
    with pytest.raises(InputError, match=r"attention_factor: short 1 and long 1.20794 differ"):
        factors_to_hf(factors)
    value = merge_into_hf(LLAMA, factors, "c", split_attention=True)
    read = parse_rope(value, "c").factors
    assert read is not None
    assert read.attention_factor == factors.attention_factor
    assert transformers_rope(value, 257)[1] == factors.attention_factor.long


def test_merge_keeps_the_rest_and_replaces_all_of_the_rope() -> None:
    factors = make_factors("pi", rope_base=1e4, rotary_dim=64, original_length=256, target_length=2048)
    before = config({"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, vocab_size=7)
    value = merge_into_hf(before, factors, "c")
    assert value["vocab_size"] == 7
    assert value["rope_parameters"]["rope_type"] == "longrope"
    assert before["rope_parameters"]["rope_type"] == "linear"


def test_merge_refuses_factors_of_another_model() -> None:
    with pytest.raises(InputError, match="c: rope_base: the factors are for 500000, the model has 10000"):
        merge_into_hf(LLAMA, load_factors("llama3-8b-128k"), "c")


def test_factors_load_from_a_model_folder(tmp_path: Path) -> None:
    factors = make_factors("ntk", rope_base=1e4, rotary_dim=64, original_length=256, target_length=2048)
    (tmp_path / "config.json").write_text(json.dumps(merge_into_hf(LLAMA, factors, "c")))
    assert load_factors(tmp_path).long_factor == factors.long_factor
    assert load_factors(tmp_path / "config.json").long_factor == factors.long_factor
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(InputError, match=r"config.json: rope_type: default, not rescaled"):
        load_factors(tmp_path)


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (config({"rope_type": "dynamic", "factor": 8.0}), "rope_type: 'dynamic' cannot be read"),
        (
            config({"rope_type": "proportional"}),
            "rope_type: 'proportional' cannot be read; known are default, linear",
        ),
        (config({"rope_type": "su"}), "rope_type: 'su' cannot be read"),
        (config({"full_attention": {"rope_type": "default"}}), "full_attention: several RoPEs in one model"),
        (config({"rope_type": "default", "mrope_section": [8, 12, 12]}), "mrope_section: several RoPEs"),
        (config("linear"), "rope_parameters: must be an object"),  # type: ignore[arg-type]
        (config({"rope_type": "linear"}), "factor: Field required"),
        (config({"rope_type": "linear", "factor": "8"}), "factor: Input should be a valid number, not '8'"),
        (
            config({"rope_type": "linear", "factor": 0.5}),
            "factor: Input should be greater than or equal to 1, not 0.5",
        ),
        (config({"rope_type": "linear", "factor": 1.0}), "target_length: 2048 is not larger"),
        (
            config(without(YARN, "original_max_position_embeddings")),
            "original_max_position_embeddings: Field required",
        ),
        (
            config(without(LLAMA3, "low_freq_factor")),
            "low_freq_factor: Field required",
        ),
        (config(without(LONGROPE, "long_factor")), "long_factor: Field required"),
        (config(LONGROPE | {"long_factor": [1.0] * 31}), "long_factor: 31 numbers, but half the rotary dim"),
        (
            config(LONGROPE | {"short_factor": [0.9] * 32}),
            "short_factor.0: Input should be greater than or equal to 1",
        ),
        (
            config(without(LONGROPE, "factor"), max_position_embeddings=256),
            "target_length: 256 is not larger than original_length 256",
        ),
        (
            config(LONGROPE, original_max_position_embeddings=512),
            "original_max_position_embeddings: rope_parameters contradicts another part",
        ),
        (
            config(LONGROPE, rope_scaling=LONGROPE | {"factor": 4.0}),
            "factor: rope_scaling contradicts another part",
        ),
        (
            without(LLAMA, "rope_theta") | {"model_type": "mixtral"},
            "rope_theta: Field required",
        ),
        (LLAMA | {"rope_theta": "1e4"}, "rope_theta: Input should be a valid number"),
        (LLAMA | {"rope_theta": 1}, "rope_theta: Input should be greater than 1, not 1"),
        (without(LLAMA, "hidden_size"), "hidden_size: Field required"),
        (LLAMA | {"head_dim": 63}, "rotary_dim: Input should be a multiple of 2, not 63"),
        (without(LLAMA, "max_position_embeddings"), "max_position_embeddings: Field required"),
    ],
)
def test_refusals(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^here/config.json: (rope_\\w+\\.)?{message}"):
        _ = parse_rope(value, "here/config.json").factors


def test_silent_base_is_transformers_default() -> None:
    assert (
        parse_rope(without(LLAMA, "rope_theta"), "c").rope_base == LlamaConfig().rope_parameters["rope_theta"]
    )


def test_config_file_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json: cannot be read"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: not a model config"):
        read_config(tmp_path)


def folder(place: Path, value: dict[str, Any]) -> Path:
    (place / "config.json").write_text(json.dumps(value))
    return place


def test_unscaled_model(tmp_path: Path) -> None:
    expected = {"rope_base": 10000.0, "rotary_dim": 64, "original_length": 256}
    assert unscaled_model(folder(tmp_path, LLAMA)) == expected
    factors = make_factors("ntk", **expected, target_length=2048)
    assert unscaled_model(folder(tmp_path, merge_into_hf(LLAMA, factors, "c"))) == expected
    with pytest.raises(InputError, match="rope_type: llama3 rescales the short window too"):
        unscaled_model(folder(tmp_path, config(LLAMA3)))
