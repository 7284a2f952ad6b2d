"""RoPE in Hugging Face configs: read into factors where fixed vectors can express it, and written back.

`config` is always the object of a `config.json`; `source` names it in errors. Fields mean what they mean in
transformers 5.23 (`modeling_rope_utils.py`), whose own functions the tests compare with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError, naming
from megatron_longrope2.files import read_json
from megatron_longrope2.rope.factors import AttentionFactor, RopeFactors, number, whole_number
from megatron_longrope2.rope.frequencies import FloatArray, check_rope
from megatron_longrope2.rope.methods import llama3_factors, pi_factors, yarn_attention_factor, yarn_factors

# Model types whose base transformers takes to be 10000 when the config is silent.
_BASE_10000 = ("llama", "mistral", "phi3", "qwen2", "qwen3")
_ORIGINAL_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True)
class HfRope:
    """The RoPE of a config, whichever schema it is written in.

    Attributes:
        rope_type: "default", "linear", ...
        rope_base: RoPE base.
        head_dim: dimensions of a head.
        rotary_dim: those of them that are rotated (`partial_rotary_factor`).
        max_length: `max_position_embeddings`, tokens.
        fields: the scaling's own fields, and `original_max_position_embeddings` from wherever it stands.
    """

    rope_type: str
    rope_base: float
    head_dim: int
    rotary_dim: int
    max_length: int
    fields: dict[str, Any]

    def number(self, name: str, default: float | None = None) -> float:
        """A numeric field of the scaling; null counts as absent."""
        value = self.fields.get(name)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{name}: missing, and rope type {self.rope_type} needs it")
        return number(value, name)

    def factor(self, default: float | None = None) -> float:
        """How many times longer the extended window is."""
        factor = self.number("factor", default)
        if not 1 <= factor < math.inf:
            raise InputError(f"factor: {factor:g} is not a finite number of at least 1")
        return factor

    def original_length(self) -> int:
        """The pre-trained window that the scaling states, tokens."""
        return whole_number(self.fields.get(_ORIGINAL_LENGTH), _ORIGINAL_LENGTH, least=2)

    def lengths(self, original: int, factor: float) -> dict[str, int]:
        """Original and target length, tokens."""
        # Some model cards leave the original length in `max_position_embeddings`.
        target = self.max_length if self.max_length > original else round(original * factor)
        return {"original_length": original, "target_length": target}


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face model folder.

    Raises:
        InputError: it is missing, unreadable or not an object.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model config; it must be a JSON object")
    return config


def read_hf_rope(config: dict[str, Any], source: str) -> HfRope:
    """RoPE type, base, dimensions and length of a config.

    Raises:
        InputError: a field is missing or wrong, the schemas contradict each other, or the model has several
            RoPEs (per layer type, multimodal).
    """
    with naming(source):
        fields = _scaling(config)

        def anywhere(name: str) -> Any:
            inside, top = fields.get(name), config.get(name)
            if None not in (inside, top) and inside != top:
                raise InputError(f"{name}: {top} at top level contradicts {inside} in the RoPE parameters")
            return top if inside is None else inside

        base = anywhere("rope_theta")
        if base is None:
            if config.get("model_type") not in _BASE_10000:
                raise InputError("rope_theta: missing; write the model's RoPE base into the config")
            base = 10000.0
        head_dim = config.get("head_dim")
        if head_dim is None:
            hidden, heads = (whole_number(config.get(n), n) for n in ("hidden_size", "num_attention_heads"))
            head_dim = hidden // heads
        head_dim = whole_number(head_dim, "head_dim")
        partial = anywhere("partial_rotary_factor")
        rotary_dim = int(head_dim * (1 if partial is None else number(partial, "partial_rotary_factor")))
        check_rope(number(base, "rope_theta"), rotary_dim)
        original = anywhere(_ORIGINAL_LENGTH)
        return HfRope(
            rope_type=fields.get("rope_type", "default"),
            rope_base=float(base),
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            max_length=whole_number(config.get("max_position_embeddings"), "max_position_embeddings"),
            fields=fields | ({} if original is None else {_ORIGINAL_LENGTH: original}),
        )


def _scaling(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `rope_parameters` and `rope_scaling` together; where both are given they must agree."""
    merged: dict[str, Any] = {}
    for schema in ("rope_parameters", "rope_scaling"):
        fields = config.get(schema) or {}
        if not isinstance(fields, dict):
            raise InputError(f"{schema}: must be an object, got {fields!r}")
        fields = dict(fields)
        if "type" in fields:  # transformers before 4.43
            fields.setdefault("rope_type", fields.pop("type"))
        for name, value in fields.items():
            if isinstance(value, dict) or name == "mrope_section":
                raise InputError(f"{schema}.{name}: several RoPEs in one model are not supported")
            if name in merged and merged[name] != value:
                raise InputError(
                    f"{name}: rope_parameters and rope_scaling contradict each other, and readers "
                    "differ in which they take; make them agree"
                )
        merged |= fields
    return merged


def factors_from_hf(config: dict[str, Any], source: str) -> RopeFactors | None:
    """The factors that a config's RoPE amounts to; None where it is not rescaled (rope type "default").

    `linear`, `yarn` and `llama3` apply at every length, so both windows get their vector and attention
    factor; `longrope` has one vector per window. Where `attention_factor` is absent, transformers' default is
    computed; `short_mscale` and `long_mscale` (vLLM's) take precedence where they are given.

    Raises:
        InputError: as `read_hf_rope` and `RopeFactors`; or no fixed vector expresses the rope type.
    """
    rope = read_hf_rope(config, source)
    if rope.rope_type == "default":
        return None
    with naming(source):
        if rope.rope_type == "dynamic":
            raise InputError(
                "rope_type: dynamic recomputes its base at every length, which fixed factors cannot "
                "express; make ntk factors for one target length instead"
            )
        if rope.rope_type not in _READERS:
            known = ", ".join(["default", *_READERS])
            raise InputError(f"rope_type: {rope.rope_type!r} cannot be read; known are {known}")
        return RopeFactors(
            rope_base=rope.rope_base,
            rotary_dim=rope.rotary_dim,
            critical_dim=None,
            provenance={"file": source, "rope_type": rope.rope_type},
            **_READERS[rope.rope_type](rope),
        )


def factors_to_hf(
    factors: RopeFactors, *, head_dim: int | None = None, split_attention: bool = False
) -> dict[str, Any]:
    """The `config.json` fields that make transformers 4 and 5 and vLLM rotate as `factors` say.

    Rope type `longrope`, as `rope_parameters` (transformers 5) and `rope_scaling` (transformers 4, others),
    with an explicit attention factor, and the lengths where each reader looks for them.

    Args:
        factors: what to write.
        head_dim: dimensions of a head; needed where only a part of them is rotated.
        split_attention: allow attention factors that differ between the windows. vLLM and this package read
            them; plain transformers will apply the long one to both windows.

    Raises:
        InputError: the attention factors differ and `split_attention` is False.
    """
    attention = factors.attention_factor
    if attention.short != attention.long and not split_attention:
        raise InputError(
            f"attention_factor: short {attention.short:g} and long {attention.long:g} differ, which plain "
            "transformers cannot express; allow it explicitly (vLLM reads the pair) or make them equal"
        )
    shared = {
        "rope_type": "longrope",
        "short_factor": list(factors.short_factor),
        "long_factor": list(factors.long_factor),
        "factor": factors.scale,
        "attention_factor": attention.long,
        _ORIGINAL_LENGTH: factors.original_length,
        "short_mscale": attention.short,
        "long_mscale": attention.long,
    }
    partial = {}
    if head_dim is not None and head_dim != factors.rotary_dim:
        fraction = factors.rotary_dim / head_dim
        # Readers compute `int(head_dim * fraction)`, which must give the rotary dimension back.
        exact = int(head_dim * fraction) == factors.rotary_dim
        partial["partial_rotary_factor"] = fraction if exact else math.nextafter(fraction, 2)
    return {
        "max_position_embeddings": factors.target_length,
        _ORIGINAL_LENGTH: factors.original_length,
        "rope_theta": factors.rope_base,
        **partial,
        "rope_scaling": {**shared, "type": "longrope"},
        "rope_parameters": {**shared, "rope_theta": factors.rope_base, **partial},
    }


def merge_into_hf(
    config: dict[str, Any], factors: RopeFactors, source: str, *, split_attention: bool = False
) -> dict[str, Any]:
    """A copy of a model's config with its RoPE replaced by `factors` (arguments as `factors_to_hf`).

    Raises:
        InputError: as `read_hf_rope` and `factors_to_hf`; or the factors are for another base or dimension.
    """
    rope = read_hf_rope(config, source)
    factors.check_model(source, rope_base=rope.rope_base, rotary_dim=rope.rotary_dim)
    return config | factors_to_hf(factors, head_dim=rope.head_dim, split_attention=split_attention)


def _read_folder(folder: str | Path) -> tuple[str, HfRope, RopeFactors | None]:
    source, config = str(Path(folder) / "config.json"), read_hf_config(folder)
    return source, read_hf_rope(config, source), factors_from_hf(config, source)


def unscaled_model(folder: str | Path) -> dict[str, Any]:
    """What `make_factors` needs to know of a model folder: `rope_base`, `rotary_dim`, `original_length`.

    Raises:
        InputError: the config is not readable, or the RoPE that the model was trained with is rescaled: the
            methods start from one that is not.
    """
    source, rope, factors = _read_folder(folder)
    if factors is not None and factors.short_factor[-1] != 1:
        raise InputError(
            f"{source}: rope_type: {rope.rope_type} rescales the short window too, and the methods start "
            "from plain RoPE; give base, dimension and length instead of the folder"
        )
    length = rope.max_length if factors is None else factors.original_length
    return {"rope_base": rope.rope_base, "rotary_dim": rope.rotary_dim, "original_length": length}


def check_folder(factors: RopeFactors, folder: str | Path) -> str:
    """Whether a model folder fits the factors; the answer is one line.

    Raises:
        InputError: the config is not readable, is for another base or rotary dimension, or carries factors
            that rotate differently.
    """
    source, rope, theirs = _read_folder(folder)
    factors.check_model(source, rope_base=rope.rope_base, rotary_dim=rope.rotary_dim)
    if theirs is None:
        differs = "" if rope.max_length == factors.original_length else ", not the factors' original length"
        return f"{source}: fits; not rescaled yet, max_position_embeddings {rope.max_length}{differs}"
    if found := factors.differences(theirs):
        raise InputError(
            f"{source}: {'; '.join(found)}: the factors against the config; export the model again"
        )
    return f"{source}: fits; carries these factors"


# Each rope type's reader returns the fields of `RopeFactors` that depend on it.


def _in_both_windows(vector: FloatArray, attention: float = 1.0) -> dict[str, Any]:
    pair = AttentionFactor(attention, attention)
    return {"long_factor": vector, "short_factor": vector, "attention_factor": pair}


def _from_linear(rope: HfRope) -> dict[str, Any]:
    """The extended length is `max_position_embeddings`; the original, where not stated, follows from it."""
    factor = rope.factor()
    stated = _ORIGINAL_LENGTH in rope.fields
    original = rope.original_length() if stated else round(rope.max_length / factor)
    vector = pi_factors(rope.rotary_dim, factor)
    return {"method": "pi"} | rope.lengths(original, factor) | _in_both_windows(vector)


def _from_yarn(rope: HfRope) -> dict[str, Any]:
    original = rope.original_length()
    factor = rope.factor(rope.max_length / original)
    vector = yarn_factors(
        rope.rope_base,
        rope.rotary_dim,
        original,
        factor,
        beta_fast=rope.number("beta_fast", 32),
        beta_slow=rope.number("beta_slow", 1),
        truncate=rope.fields.get("truncate", True),
    )
    mscale, mscale_all = rope.number("mscale", 0), rope.number("mscale_all_dim", 0)
    default = yarn_attention_factor(factor)
    if mscale and mscale_all:
        default = (1 + (default - 1) * mscale) / (1 + (default - 1) * mscale_all)
    attention = rope.number("attention_factor", default)
    return {"method": "yarn"} | rope.lengths(original, factor) | _in_both_windows(vector, attention)


def _from_llama3(rope: HfRope) -> dict[str, Any]:
    original, factor = rope.original_length(), rope.factor()
    vector = llama3_factors(
        rope.rope_base,
        rope.rotary_dim,
        original,
        factor,
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
    )
    return {"method": "llama3"} | rope.lengths(original, factor) | _in_both_windows(vector)


def _from_longrope(rope: HfRope) -> dict[str, Any]:
    for name in ("long_factor", "short_factor"):
        if name not in rope.fields:
            raise InputError(f"{name}: missing, and rope type longrope needs it")
    original = rope.original_length()
    factor = rope.factor(rope.max_length / original)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    attention = rope.number("attention_factor", default)
    return {
        "method": "longrope",
        "original_length": original,
        "target_length": rope.max_length,
        "long_factor": rope.fields["long_factor"],
        "short_factor": rope.fields["short_factor"],
        "attention_factor": AttentionFactor(
            rope.number("short_mscale", attention), rope.number("long_mscale", attention)
        ),
    }


_READERS: dict[str, Callable[[HfRope], dict[str, Any]]] = {
    "linear": _from_linear,
    "yarn": _from_yarn,
    "llama3": _from_llama3,
    "longrope": _from_longrope,
}
