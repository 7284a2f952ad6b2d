"""Extended models in transformers, with a `generate` that is right across the original length.

transformers chooses the RoPE window once a forward call, for the whole batch, from the highest position in
it, and keeps its key-value cache when a sequence crosses the original length: Llama then mixes two rotations,
and a short prompt padded beside a long one gets the long factors. `load` returns the same model without these
faults:

- every row of a batch has its own window, which follows from its own length without padding;
- when a row crosses the original length, `generate` drops the cache and computes the sequences once more;
- a forward call that would use a cache of the other window is refused;
- the two windows may have different attention factors. Angles are those of training, bit for bit.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors, load_factors
from megatron_longrope2.rope.angles import deployed_angles, inverse_frequencies
from megatron_longrope2.rope.hf import parse_rope, read_config


def load(
    folder: str | Path, factors: RopeFactors | str | Path | None = None, **options: Any
) -> PreTrainedModel:
    """A transformers causal language model whose `generate` and `forward` use the right window.

    Args:
        folder: Hugging Face model folder of a Llama-shaped model (Llama, Mistral, Qwen2, Qwen3, Phi3, ...).
        factors: a set, its file or a published name; default: what config.json says. A model that is not
            rescaled is returned as transformers has it.
        options: go to `AutoModelForCausalLM.from_pretrained` (dtype, device_map, ...).

    Raises:
        InputError: the folder cannot be read, or the factors are another model's.
    """
    config = read_config(folder)
    if factors is None:
        factors = parse_rope(config, str(folder)).factors
    elif not isinstance(factors, RopeFactors):
        factors = load_factors(factors)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    if factors is not None:
        set_factors(model, factors)
    return model


def set_factors(model: PreTrainedModel, factors: RopeFactors) -> None:
    """Make a loaded model use these factors, in both windows, from the next call on.

    Raises:
        InputError: the model has no rotary embedding where Llama has it, or another rotary dimension.
    """
    old = getattr(model.base_model, "rotary_emb", None)
    if old is None:
        raise InputError(
            f"{type(model).__name__}: has no `rotary_emb` as Llama-shaped models have; use one of those"
        )
    rotary_dim = old.rotary_dim if isinstance(old, WindowRotaryEmbedding) else 2 * len(old.inv_freq)
    if factors.rotary_dim != rotary_dim:
        raise InputError(
            f"factors: rotary_dim: {factors.rotary_dim} is not the model's {rotary_dim}; "
            "use factors of this model"
        )
    model.base_model.rotary_emb = WindowRotaryEmbedding(factors)
    if not isinstance(model, SwitchingGeneration):
        base = type(model)
        # Under the model's own name, which `save_pretrained` writes into config.json.
        model.__class__ = type(base.__name__, (SwitchingGeneration, base), {"__module__": base.__module__})


class WindowRotaryEmbedding(torch.nn.Module):
    """Cosine and sine of each row's window, with the interface of transformers' rotary embeddings."""

    def __init__(self, factors: RopeFactors) -> None:
        super().__init__()
        self.factors = factors
        self.rotary_dim = factors.rotary_dim

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [batch, n, rotary_dim] in x's type, for position_ids [batch, n].

        Raises:
            InputError: a position is beyond the target length, or the call continues in the long window from
                a cache of the short one.
        """
        factors = self.factors
        first, last = position_ids.amin(1), position_ids.amax(1)
        longest = int(last.max()) + 1
        if longest > factors.target_length:
            raise InputError(
                f"sequence: {longest} tokens are longer than the target length of {factors.target_length}; "
                "shorten it or use factors for a longer target"
            )
        long = last >= factors.original_length
        if bool((long & (first > 0) & (first <= factors.original_length)).any()):
            raise InputError(
                f"past_key_values: a sequence crosses the original length of {factors.original_length} "
                "tokens with a cache made before it; call the model without the cache, or use `generate`"
            )
        device = position_ids.device
        frequencies = torch.stack(
            [inverse_frequencies(factors.factor(w), factors.rope_base, device) for w in ("short", "long")]
        )
        angles = deployed_angles(position_ids, frequencies[long.long()][:, None])
        angles = torch.cat([angles, angles], dim=-1)
        scales = torch.tensor([factors.attention_factor.short, factors.attention_factor.long], device=device)
        scale = scales[long.long()][:, None, None]
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)


class SwitchingGeneration:
    """Mixed into a transformers model: `generate` drops the cache when a row crosses the original length."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' method, with the whole sequences as input where the cache is of the other window."""
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if past_key_values is not None and cached:
            padded = input_ids.shape[1]
            lengths = torch.full((len(input_ids),), padded, device=input_ids.device)
            if attention_mask is not None and attention_mask.ndim == 2:
                lengths = attention_mask[:, :padded].sum(1)
            original = self.base_model.rotary_emb.factors.original_length  # type: ignore[attr-defined]
            if bool(((lengths > original) & (lengths - (padded - cached) <= original)).any()):
                past_key_values.reset()
                next_sequence_length = None
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            **kwargs,
        )
