"""The rotary embedding with the switch: original angles up to the original length, rescaled ones beyond.

`GPTModel` asks `get_rotary_seq_len` for the longest document of the micro-batch and calls the module with it,
on every pipeline stage, in training and at inference. "A document longer than the original length gets the
rescaled angles" is therefore one comparison here, and gives the mixed context windows (LongRoPE2 section 3.3)
and the inference rule at once.
"""

from typing import Any, Literal, Protocol

import torch
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.rope.angles import angle_table, deployed_angles

Window = Literal["short", "long"]


class LearnedFactors(Protocol):
    """Long-window factors that carry gradient; asked anew in every forward pass."""

    def inv_freq(self) -> Tensor:
        """Angle per token of each dimension: float64 [rotary_dim / 2]."""

    def attention_factor(self) -> Tensor:
        """What multiplies cosine and sine: 0-dim."""


class DocumentLengths(int):
    """The longest document of a pack, as upstream's interface wants it, that also remembers all lengths."""

    lengths: tuple[int, ...]

    def __new__(cls, lengths: tuple[int, ...]) -> "DocumentLengths":
        self = super().__new__(cls, max(lengths))
        self.lengths = lengths
        return self


class LongRoPE2RotaryEmbedding(RotaryEmbedding):
    """Upstream's rotary embedding with two tables, chosen by the length of the document.

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
        self.set_factors(factors)

    def set_factors(self, factors: RopeFactors) -> None:
        """Use other factors from the next forward pass on (the search calls this for every candidate)."""
        self.factors = factors
        self._learned: tuple[LearnedFactors] | None = None
        self._tables: dict[Window, Tensor] = {}

    def learn(self, learned: LearnedFactors) -> None:
        """Take the long window's factors from `learned`, with gradient, until `set_factors` is called.

        It is kept in a one-tuple: its parameters are not the model's, unless someone registers them there.
        """
        self._learned = (learned,)

    def window(self, length: int) -> Window:
        """The window that a document of `length` tokens belongs to (METHOD: original length included)."""
        return "long" if length > self.factors.original_length else "short"

    def attention_factor(self, seq_len: int) -> float | Tensor:
        """What multiplies cosine and sine, for the length(s) that `get_rotary_seq_len` returned.

        A number (a 0-dim tensor where it is learned), or one value a token of the pack, [tokens, 1, 1, 1],
        when documents of both windows differ.
        """
        short = self.factors.attention_factor.short
        long: float | Tensor = self.factors.attention_factor.long
        if self._learned is not None:
            long = self._learned[0].attention_factor()
        if isinstance(seq_len, DocumentLengths) and short != long:
            lengths = torch.tensor(seq_len.lengths)
            values = torch.where(lengths > self.factors.original_length, long, short)
            rows = values.float().repeat_interleave(lengths)[:, None, None, None]
            return rows.to(torch.cuda.current_device())
        return long if self.window(seq_len) == "long" else short

    def get_rotary_seq_len(
        self,
        inference_context: Any,
        transformer: Any,
        transformer_input: Tensor,
        transformer_config: Any,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs: Any,
    ) -> int:
        """Upstream's length; for a pack with documents of both windows, all lengths (`DocumentLengths`)."""
        longest = super().get_rotary_seq_len(
            inference_context, transformer, transformer_input, transformer_config, packed_seq_params, **kwargs
        )
        if packed_seq_params is None or self.window(longest) == "short":
            return longest
        boundaries = packed_seq_params.cu_seqlens_q_padded
        if boundaries is None:
            boundaries = packed_seq_params.cu_seqlens_q
        lengths = tuple(boundaries.diff().tolist())
        if all(self.window(length) == "long" for length in lengths):
            return longest
        return DocumentLengths(lengths)

    def get_freqs_non_repeated(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles [max_seq_len, rotary_dim / 2] in float32, of the window that `max_seq_len` belongs to.

        They are what the export's readers will compute; learned ones carry gradient.
        """
        window, length, device = self.window(max_seq_len), max_seq_len + offset, torch.cuda.current_device()
        if window == "long" and self._learned is not None:
            return angle_table(length, self._learned[0].inv_freq(), device)[offset:]
        return deployed_angles(length, self.factors, window, device)[offset:]

    def forward(
        self,
        max_seq_len: int,
        offset: int = 0,
        packed_seq: bool = False,
        cp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Tensor:
        """Angles [max_seq_len, 1, 1, rotary_dim]; for `DocumentLengths` those of every token of the pack.

        Upstream caches by argument, in one cache for all instances that outlives a change of factors; here
        the longest table so far is kept for each window.
        """
        if isinstance(max_seq_len, DocumentLengths):
            return torch.cat([self._rows(self.window(length), length) for length in max_seq_len.lengths])
        embedding = self._rows(self.window(max_seq_len), max_seq_len, offset)
        group = cp_group if cp_group is not None else self.cp_group
        if group is not None and group.size() > 1 and not packed_seq:
            return get_pos_emb_on_this_cp_rank(embedding, 0, group)
        return embedding

    def _rows(self, window: Window, length: int, offset: int = 0) -> Tensor:
        """Exactly `length` rows: upstream tells a whole pack's table from one document's by its length."""
        if window == "long" and self._learned is not None:
            return self.get_emb(offset + length)[offset:]  # its graph lives for one pass
        table = self._tables.get(window)
        if table is None or len(table) < offset + length:
            longest = self.factors.original_length if window == "short" else offset + length
            table = self._tables[window] = self.get_emb(max(longest, offset + length))
        return table[offset : offset + length]
