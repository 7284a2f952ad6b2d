"""config.json on one side, Megatron's arguments on the other."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from megatron_longrope2.checkpoint.architectures import ARCHITECTURES, Architecture
from megatron_longrope2.checkpoint.mapping import Mapping, Shape, dtype_name
from megatron_longrope2.errors import InputError, one_line
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import RopeFactors, load_factors
from megatron_longrope2.rope.hf import HfRope, merge_into_hf, parse_rope, read_config

# Megatron argument: config.json field.
FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "layernorm_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}

# Arguments of every model that converts. Dropout is off: none of these models was trained with it.
CONSTANTS: dict[str, Any] = {
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "position_embedding_type": "rope",
    "add_position_embedding": True,
    "rotary_interleaved": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}


@dataclass(frozen=True)
class HFConfig:
    """A config.json: as it was written, and completed with its architecture's defaults.

    Attributes:
        path: the file.
        raw: its content.
        full: what transformers 5 makes of it, with every field and the RoPE under `rope_parameters`.
    """

    path: Path
    raw: dict[str, Any]
    full: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "HFConfig":
        """Read the config.json of a model folder.

        Raises:
            InputError: missing, not JSON, an unknown architecture, or something that cannot be converted.
        """
        path = Path(folder) / "config.json"
        raw = read_config(folder)
        kind = raw.get("model_type")
        if kind not in ARCHITECTURES:
            raise InputError(
                f"{path}: model_type: {kind!r} is not supported; known are {', '.join(ARCHITECTURES)} "
                "(docs/checkpoints.md shows how to add one)"
            )
        try:
            full = AutoConfig.from_pretrained(path.parent, local_files_only=True).to_dict()
        except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
            raise InputError(f"{path}: not a valid {kind} configuration: {one_line(error)}") from error
        config = cls(path=path, raw=raw, full=full)
        config._check()
        return config

    @classmethod
    def of(cls, dims: ModelDims, kind: str = "llama") -> "HFConfig":
        """The configuration of a model of these sizes; there is no file.

        Args:
            kind: its model_type, one of `ARCHITECTURES`.
        """
        sizes = {field: getattr(dims, name) for name, field in FIELDS.items() if hasattr(dims, name)}
        made = AutoConfig.for_model(
            kind,
            **sizes,
            head_dim=dims.kv_channels,
            max_position_embeddings=dims.original_length,
            tie_word_embeddings=dims.tied,
        )
        return cls(path=Path(dims.name), raw={}, full=made.to_dict())

    @property
    def model_type(self) -> str:
        """The architecture's name."""
        return self.full["model_type"]

    @property
    def architecture(self) -> Architecture:
        """The table that converts it."""
        return ARCHITECTURES[self.model_type]

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return bool(self.full.get("tie_word_embeddings"))

    @property
    def biased(self) -> bool:
        """Whether every linear layer has a bias."""
        return bool(self.full.get("attention_bias"))

    @cached_property
    def rope(self) -> HfRope:
        """Its RoPE.

        Raises:
            InputError: a rope type that is not known, or a broken one.
        """
        return parse_rope(self.full, source=str(self.path))

    def mappings(self) -> list[Mapping]:
        """The table's rows that this model uses."""
        return self.architecture.mappings(tied=self.tied, biased=self.biased)

    def steps(self) -> Iterator[tuple[Mapping, int | None]]:
        """Mappings with their layers, layer by layer, as Hugging Face files are ordered."""
        dims = self.dims()
        for _, group in groupby(self.mappings(), key=lambda mapping: mapping.in_layers):
            together = list(group)
            for layer in together[0].layers(dims):
                yield from ((mapping, layer) for mapping in together)

    def tensors(self) -> Iterator[tuple[str, Shape, Mapping]]:
        """Name and shape of every Hugging Face tensor, in order, and the mapping that it belongs to."""
        dims = self.dims()
        for mapping, layer in self.steps():
            for name, shape in zip(mapping.hf_names(layer), mapping.hf_shapes(dims), strict=True):
                yield name, shape, mapping

    def dims(self) -> ModelDims:
        """The model's sizes; its vocabulary is not padded.

        Raises:
            InputError: as `rope`.
        """
        return ModelDims(
            **{name: int(self.full[field]) for name, field in FIELDS.items() if name != "layernorm_epsilon"},
            name=self.path.parent.name,
            kv_channels=self.rope.head_dim,
            original_length=self.rope.original_length,
            tied=self.tied,
        )

    def as_llama(self) -> "HFConfig":
        """The same model under Llama's names, for readers that cannot rescale its own architecture.

        Raises:
            InputError: Llama has no place for some of its tensors, or does not rotate a part of a head.
        """
        llama = ARCHITECTURES["llama"]
        kept = {
            name: value for name, value in self.raw.items() if name in AutoConfig.for_model("llama").to_dict()
        }
        kept |= {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "head_dim": self.rope.head_dim,
            "attention_bias": self.biased,
            "mlp_bias": self.biased,
        }
        names = {mapping.megatron for mapping in self.mappings()}
        if names != {mapping.megatron for mapping in llama.mappings(tied=self.tied, biased=self.biased)}:
            raise InputError(f"{self.path}: model_type: {self.model_type} has tensors that llama has not")
        if self.rope.rotary_dim != self.rope.head_dim:
            raise InputError(f"{self.path}: partial_rotary_factor: llama rotates whole heads only")
        return HFConfig(path=self.path, raw=kept, full=AutoConfig.for_model(**kept).to_dict())

    def load_factors(self, place: str | Path, original_length: int | None) -> RopeFactors:
        """Factors from a file or by published name, for this model.

        Raises:
            InputError: they are another model's, or their short window is not the RoPE that this model has.
        """
        factors = load_factors(place, **self.rope.facts, original_length=original_length)
        own = self.rope.factors
        if own is not None and not (
            np.allclose(own.short_factor, factors.short_factor, rtol=1e-6)
            and own.attention_factor.short == factors.attention_factor.short
        ):
            raise InputError(
                f"{place}: short_factor: {self.path} has rope type {self.rope.rope_type}, which the short "
                "window would lose; write the model's own factors into short_factor and "
                "attention_factor.short"
            )
        return factors

    def check_window(self, original_length: int) -> None:
        """Refuse sliding-window attention that bites inside the pre-trained window.

        Raises:
            InputError: the window is shorter than the original length.
        """
        window = self.full.get("sliding_window")
        if window is not None and window < original_length - 1:
            raise InputError(
                f"{self.path}: sliding_window: {window} is shorter than the original length "
                f"{original_length}, where full attention would differ from it; give --original-length of at "
                f"most {window + 1}"
            )

    def _check(self) -> None:
        activation = self.full.get("hidden_act", "silu")
        if activation != "silu":
            raise InputError(f"{self.path}: hidden_act: {activation!r} cannot be converted, only 'silu'")
        mlp_bias = self.full.get("mlp_bias", self.biased)
        if mlp_bias != self.biased:
            raise InputError(
                f"{self.path}: mlp_bias: {mlp_bias} beside attention_bias {self.biased} cannot be converted, "
                "Megatron has biases in all linear layers or in none"
            )
        if self.biased and not self.architecture.biases:
            raise InputError(f"{self.path}: attention_bias: {self.model_type} with it is not supported")


def megatron_args(
    config: HFConfig,
    dims: ModelDims,
    *,
    factors: RopeFactors | None,
    params_dtype: torch.dtype,
    tokenizer_folder: Path,
) -> Namespace:
    """The arguments that a run with `--use-checkpoint-args` takes from the checkpoint."""
    base = config.rope.rope_base
    return Namespace(
        **{
            **CONSTANTS,
            **{name: config.full[field] for name, field in FIELDS.items()},
            **config.architecture.arguments,
            **({"add_bias_linear": True} if config.biased else {}),
            "kv_channels": dims.kv_channels,
            "group_query_attention": dims.num_query_groups != dims.num_attention_heads,
            "untie_embeddings_and_output_weights": not config.tied,
            "rotary_base": int(base) if base.is_integer() else base,
            "rotary_percent": config.rope.rotary_dim / dims.kv_channels,
            "seq_length": dims.original_length,
            "max_position_embeddings": factors.target_length if factors else dims.original_length,
            "padded_vocab_size": dims.padded_vocab_size,
            "make_vocab_size_divisible_by": 128,
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(tokenizer_folder.absolute()),
            "params_dtype": params_dtype,
            "ckpt_format": "torch_dist",
            "tensor_model_parallel_size": 1,
            "pipeline_model_parallel_size": 1,
            "no_save_optim": True,
            "no_save_rng": True,
            "original_length": dims.original_length,
            "longrope2_factors": factors.to_dict() if factors else None,
        }
    )


def check_args(config: HFConfig, args: Namespace, source: str) -> None:
    """Refuse a config.json that is not the one of a Megatron checkpoint.

    Raises:
        InputError: a size differs; the first one is named.
    """
    expected = asdict(config.dims()) | {"layernorm_epsilon": config.full["rms_norm_eps"]}
    saved = asdict(ModelDims.from_args(args)) | {"layernorm_epsilon": args.layernorm_epsilon}
    fields = FIELDS | {"kv_channels": "head_dim", "tied": "tie_word_embeddings"}
    for name, field in fields.items():
        # Megatron knows the padded vocabulary only; the shape of the embedding is compared instead.
        if name != "vocab_size" and expected[name] != saved[name]:
            raise InputError(
                f"{config.path}: {field}: {expected[name]} is not the {saved[name]} of {source}; "
                "give the config.json of the model that was trained"
            )


def exported_config(
    config: HFConfig, factors: RopeFactors | None, dtype: torch.dtype, *, split_attention: bool = False
) -> dict[str, Any]:
    """The config.json of an export.

    Args:
        config: of the model that the checkpoint began from.
        factors: the checkpoint's; where they are what `config` says, its RoPE stays as it was written.
        dtype: of the weights.
        split_attention: allow attention factors that differ between the windows (`factors_to_hf`).

    Raises:
        InputError: the factors are another model's, or need `split_attention`.
    """
    name = dtype_name(dtype)
    out = {key: value for key, value in config.raw.items() if key not in ("auto_map", "dtype", "torch_dtype")}
    # transformers 5 reads the first name; 4 and vLLM the second.
    out |= {"dtype": name, "torch_dtype": name}
    if factors is None or factors == config.rope.factors:
        return out
    out.setdefault("max_position_embeddings", config.full["max_position_embeddings"])
    out = merge_into_hf(out, factors, str(config.path), split_attention=split_attention)
    if out.get("sliding_window") is not None:
        out["sliding_window"] = None
    return out
