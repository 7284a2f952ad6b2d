"""RoPE in Hugging Face configs: read into factors where fixed vectors can express it, and written back.

`config` is always the object of a `config.json`; `source` names it in errors. Fields mean what they mean in
transformers 5.23 (`modeling_rope_utils.py`), whose own functions the tests compare with.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from megatron_longrope2.errors import InputError, naming
from megatron_longrope2.files import read_json
from megatron_longrope2.rope.factors import (
    AttentionFactor,
    Factor,
    Length,
    Positive,
    RopeBase,
    RopeFactors,
    RotaryDim,
)
from megatron_longrope2.rope.frequencies import FloatArray
from megatron_longrope2.rope.methods import (
    llama3_factors,
    longrope_attention_factor,
    pi_factors,
    yarn_attention_factor,
    yarn_factors,
)

# Model types whose base transformers takes to be 10000 when the config is silent.
_BASE_10000 = ("llama", "mistral", "phi3", "qwen2", "qwen3")
_ORIGINAL_LENGTH = "original_max_position_embeddings"
_TOP_LEVEL = (
    *("hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings"),
    *("rope_theta", "partial_rotary_factor", _ORIGINAL_LENGTH),
)

Original = Annotated[int, Field(strict=True, ge=2)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Vector = tuple[Number, ...]
Windows = tuple[Vector, Vector, AttentionFactor]
"""Long and short factors, [rotary_dim/2], and their attention factors."""


class HfRope(BaseModel, frozen=True):
    """The RoPE of a config, whichever schema it is written in; itself of rope type "default", not rescaled.

    Attributes:
        source: the config's name, for messages.
        rope_type: "default", "linear", ...
        rope_base: RoPE base.
        head_dim: dimensions of a head.
        rotary_dim: those of them that are rotated.
        max_length: `max_position_embeddings`, tokens.
        factor: how many times longer the extended window is, where the config says so.
        original_length: the pre-trained window, tokens.
    """

    source: str
    rope_type: str = "default"
    rope_base: RopeBase = Field(alias="rope_theta")
    hidden_size: Length
    num_attention_heads: Length
    head_dim: Length = Field(
        default_factory=lambda known: known["hidden_size"] // known["num_attention_heads"]
    )
    partial_rotary_factor: Number = 1.0
    rotary_dim: RotaryDim = Field(
        default_factory=lambda known: int(known["head_dim"] * known["partial_rotary_factor"]),
        validate_default=True,
    )
    max_length: Length = Field(alias="max_position_embeddings")
    factor: Factor | None = None
    original_length: Length = Field(default_factory=lambda known: known["max_length"])

    @property
    def facts(self) -> dict[str, Any]:
        """What factors must have in common with the model (`RopeFactors.check_model`)."""
        return {"rope_base": self.rope_base, "rotary_dim": self.rotary_dim}

    @property
    def factors(self) -> RopeFactors | None:
        """The factors that the RoPE amounts to; None where it is not rescaled (rope type "default").

        `linear`, `yarn` and `llama3` apply at every length, so both windows get their vector and attention
        factor; `longrope` has one vector per window. Where `attention_factor` is absent, transformers'
        default is computed; `short_mscale` and `long_mscale` (vLLM's) take precedence where they are given.

        Raises:
            InputError: as `RopeFactors`.
        """
        return None


class RescaledRope(HfRope, ABC, frozen=True):
    """A RoPE of another type."""

    original_length: Original = Field(alias="original_max_position_embeddings")

    @property
    def scale(self) -> float:
        """`factor`, or the ratio of the two lengths."""
        return self.factor or self.max_length / self.original_length

    @property
    def factors(self) -> RopeFactors:
        with naming(self.source):
            long, short, attention = self.windows()
            # Some model cards leave the original length in `max_position_embeddings`.
            extended = self.max_length > self.original_length
            return RopeFactors(
                method=self.rope_type,
                rope_base=self.rope_base,
                rotary_dim=self.rotary_dim,
                original_length=self.original_length,
                target_length=self.max_length if extended else round(self.original_length * self.scale),
                critical_dim=None,
                long_factor=long,
                short_factor=short,
                attention_factor=attention,
                provenance={"file": self.source},
            )

    @abstractmethod
    def windows(self) -> Windows:
        """What it does in the two windows."""


class LinearRope(RescaledRope, frozen=True):
    """The extended length is `max_position_embeddings`; the original, where not stated, follows from it."""

    factor: Factor
    original_length: Original = Field(
        default_factory=lambda known: round(known["max_length"] / known["factor"]),
        alias="original_max_position_embeddings",
        validate_default=True,
    )

    def windows(self) -> Windows:
        return _both(pi_factors(self.rotary_dim, self.scale))


class YarnRope(RescaledRope, frozen=True):
    """YaRN, with DeepSeek's `mscale` where the config has it."""

    beta_fast: Number = 32.0
    beta_slow: Number = 1.0
    truncate: bool = True
    mscale: Number = 0.0
    mscale_all_dim: Number = 0.0
    attention_factor: Positive | None = None

    def windows(self) -> Windows:
        ramp = self.model_dump(include={"beta_fast", "beta_slow", "truncate"})
        vector = yarn_factors(self.rope_base, self.rotary_dim, self.original_length, self.scale, **ramp)
        default = yarn_attention_factor(self.scale)
        if self.mscale and self.mscale_all_dim:
            default = (1 + (default - 1) * self.mscale) / (1 + (default - 1) * self.mscale_all_dim)
        return _both(vector, self.attention_factor or default)


class Llama3Rope(RescaledRope, frozen=True):
    """LLaMA 3.1's."""

    low_freq_factor: Number
    high_freq_factor: Number

    def windows(self) -> Windows:
        bounds = self.model_dump(include={"low_freq_factor", "high_freq_factor"})
        model = self.rope_base, self.rotary_dim, self.original_length
        return _both(llama3_factors(*model, self.scale, **bounds))


class LongRope(RescaledRope, frozen=True):
    """A vector for each window, in the config itself."""

    long_factor: Vector
    short_factor: Vector
    attention_factor: Positive | None = None
    short_mscale: Positive | None = None
    long_mscale: Positive | None = None

    def windows(self) -> Windows:
        both = self.attention_factor or longrope_attention_factor(self.scale, self.original_length)
        pair = AttentionFactor(self.short_mscale or both, self.long_mscale or both)
        return self.long_factor, self.short_factor, pair


def _both(vector: FloatArray, attention: float = 1.0) -> Windows:
    return tuple(vector.tolist()), tuple(vector.tolist()), AttentionFactor(attention, attention)


_ROPES = {
    "default": HfRope,
    "linear": LinearRope,
    "yarn": YarnRope,
    "llama3": Llama3Rope,
    "longrope": LongRope,
}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face model folder.

    Raises:
        InputError: it is missing, unreadable or not an object.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a model config; it must be a JSON object")
    return config


def read_rope(folder: str | Path) -> HfRope:
    """The RoPE of a Hugging Face model folder (`parse_rope`)."""
    return parse_rope(read_config(folder), str(Path(folder) / "config.json"))


def parse_rope(config: dict[str, Any], source: str) -> HfRope:
    """The RoPE of a config.

    Raises:
        InputError: a field is missing or wrong, the schemas contradict each other, the model has several
            RoPEs (per layer type, multimodal), or no fixed vector expresses the rope type.
    """
    with naming(source):
        fields = _fields(config)
        rope_type = str(fields.get("rope_type", "default"))
        if rope_type not in _ROPES:
            raise InputError(f"rope_type: {rope_type!r} cannot be read; known are {', '.join(_ROPES)}")
        return _ROPES[rope_type](**fields | {"source": source})


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of its RoPE, wherever it says so; null counts as absent."""
    schemas = {"config": {name: config.get(name) for name in _TOP_LEVEL}}
    schemas |= {schema: config.get(schema) or {} for schema in ("rope_parameters", "rope_scaling")}
    merged: dict[str, Any] = {}
    for schema, fields in schemas.items():
        if not isinstance(fields, dict):
            raise InputError(f"{schema}: must be an object, got {fields!r}")
        if "type" in fields:  # transformers before 4.43
            fields = {"rope_type": fields["type"]} | fields
        for name, value in fields.items():
            if isinstance(value, dict) or name == "mrope_section":
                raise InputError(f"{schema}.{name}: several RoPEs in one model are not supported")
            if value is not None and merged.setdefault(name, value) != value:
                raise InputError(
                    f"{name}: {schema} contradicts another part of the config, and readers differ in which "
                    "they take; make them agree"
                )
    if config.get("model_type") in _BASE_10000:
        merged.setdefault("rope_theta", 10000.0)
    return merged


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
        InputError: as `parse_rope` and `factors_to_hf`; or the factors are for another base or dimension.
    """
    rope = parse_rope(config, source)
    factors.check_model(source, **rope.facts)
    return config | factors_to_hf(factors, head_dim=rope.head_dim, split_attention=split_attention)
