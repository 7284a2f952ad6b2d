"""The rotary embedding with the switch: original angles up to the original length, rescaled ones beyond.

`GPTModel` asks `get_rotary_seq_len` for the length of the micro-batch and calls the module with it, on every
pipeline stage, in training and at inference. "A document longer than the original length gets the rescaled
angles" is therefore one comparison here, and gives the mixed context windows (LongRoPE2 section 3.3) and the
inference rule at once.
"""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.pack import DocumentPack, longer_than
from megatron_longrope2.rope import RopeFactors, Window
from megatron_longrope2.rope.angles import deployed_angles, inverse_frequencies


class ActiveFactors:
    """The factors that a model applies now: one object for its rotary embedding and all its attention layers.

    It is no module, so the layers do not own the embedding, nor the model the factors that are learned.

    Attributes:
        factors: of both windows.
        learned: what gives the long window's factors in place of `factors`; None: nothing is learned.
    """

    def __init__(self, factors: RopeFactors) -> None:
        self.factors = factors
        self.learned: LearnedFactors | None = None

    def window(self, length: int) -> Window:
        """The window of a document of `length` tokens; the original length belongs to the short one."""
        return "long" if length > self.factors.original_length else "short"

    def inv_freq(self, window: Window) -> Tensor:
        """Rescaled angle per token of each dimension: float32 [rotary_dim / 2], with gradient if learned."""
        if window == "long" and self.learned is not None:
            factor: Any = self.learned.factor()
        else:
            factor = self.factors.factor(window)
        return inverse_frequencies(factor, self.factors.rope_base, torch.cuda.current_device())

    def query_scale(self, extent: DocumentPack | int) -> float | Tensor:
        """What multiplies the queries of a pack, or of batch rows of a length: the squared attention factor.

        A number; where it is learned a 0-dim tensor; [tokens, 1, 1, 1] where a pack needs two of them.
        """
        factor = self.factors.attention_factor
        short: float = factor.short**2
        long = factor.long**2 if self.learned is None else self.learned.attention_factor().float() ** 2
        if self.learned is None and short == long:
            return short
        is_long = (
            self.window(extent) == "long"
            if isinstance(extent, int)
            else longer_than(extent, self.factors.original_length)
        )
        return of_window(is_long, long, short)


def of_window(is_long: Tensor | bool, long: Any, short: Any) -> Any:
    """The one of two values that belongs to the window; a row for each token where both do."""
    if isinstance(is_long, bool):
        return long if is_long else short
    return torch.where(is_long, long, short)


class LongRoPE2RotaryEmbedding(RotaryEmbedding):
    """Upstream's rotary embedding with two sets of angles, chosen by the length of the document.

    Args:
        factors: base, rotary dimension, original length and the factors of both windows.
        rotary_interleaved: pairs of neighbouring dimensions are rotated, instead of halves.
        cp_group: the context-parallel group.
    """

    def __init__(
        self,
        factors: RopeFactors,
        *,
        rotary_interleaved: bool = False,
        cp_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            kv_channels=factors.rotary_dim,
            rotary_percent=1.0,
            rotary_interleaved=rotary_interleaved,
            rotary_base=factors.rope_base,
            use_cpu_initialization=True,
            cp_group=cp_group,
        )
        self.active = ActiveFactors(factors)

    @property
    def factors(self) -> RopeFactors:
        """The factors of both windows."""
        return self.active.factors

    def set_factors(self, factors: RopeFactors) -> None:
        """Use other factors from the next forward pass on (the search calls this for every candidate)."""
        self.active.factors, self.active.learned = factors, None

    def learn(self, learned: LearnedFactors) -> None:
        """Take the long window's factors from `learned`, with gradient, until `set_factors` is called."""
        self.active.learned = learned

    def get_rotary_seq_len(
        self,
        inference_context: Any,
        transformer: Any,
        transformer_input: Tensor,
        transformer_config: Any,
        packed_seq_params: DocumentPack | None = None,
        **kwargs: Any,
    ) -> int | DocumentPack:
        """Upstream's length, or the pack itself.

        `GPTModel` hands what this returns to `forward`, and does nothing else with it.
        """
        if packed_seq_params is not None:
            return packed_seq_params
        return super().get_rotary_seq_len(
            inference_context, transformer, transformer_input, transformer_config, **kwargs
        )

    def get_freqs_non_repeated(self, max_seq_len: int | DocumentPack, offset: int = 0) -> Tensor:
        """Angles of a pack's tokens here, or of so many positions: float32 [tokens, rotary_dim / 2]."""
        active = self.active
        if isinstance(max_seq_len, DocumentPack):
            is_long = longer_than(max_seq_len, self.factors.original_length)
            inv_freq = of_window(is_long, active.inv_freq("long"), active.inv_freq("short"))
            return deployed_angles(max_seq_len.positions, inv_freq.view(-1, inv_freq.shape[-1]))
        positions = torch.arange(offset, offset + max_seq_len, device=torch.cuda.current_device())
        return deployed_angles(positions, active.inv_freq(active.window(max_seq_len)))

    def forward(
        self,
        max_seq_len: int | DocumentPack,
        packed_seq: bool = False,
        cp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Tensor:
        """Angles of this rank's tokens, float32 [tokens, 1, 1, rotary_dim]; learned ones carry gradient.

        Upstream gives a pack the angles of its longest document, of which a loop over documents takes the
        rows in every layer; here every token of a pack has its own row.

        Args:
            max_seq_len: what `get_rotary_seq_len` returned: a pack, or the length of all batch rows.
            packed_seq: whether it is a pack.
            cp_group: the context-parallel group that shares batch rows, if not the module's own.
        """
        angles = self.get_emb(max_seq_len)
        group = cp_group if cp_group is not None else self.cp_group
        if group is not None and group.size() > 1 and not packed_seq:
            return get_pos_emb_on_this_cp_rank(angles, 0, group)
        return angles
