"""The rotary embedding with the switch: original angles up to the original length, rescaled ones beyond.

`GPTModel` asks `get_rotary_seq_len` for the longest document of the micro-batch and calls the module with it,
on every pipeline stage, in training and at inference. "A document longer than the original length gets the
rescaled angles" is therefore one comparison here, and gives the mixed context windows (LongRoPE2 section 3.3)
and the inference rule at once.
"""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.pack import DocumentPack
from megatron_longrope2.rope import RopeFactors, Window
from megatron_longrope2.rope.angles import angle_table, deployed_angles


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

    def one_window(self, lengths: tuple[int, ...]) -> bool:
        """Whether all documents belong to the same window."""
        return len({self.window(length) for length in lengths}) == 1

    def attention_factor(self, lengths: tuple[int, ...]) -> float | Tensor:
        """What multiplies cosine and sine of documents of these lengths.

        A number (a 0-dim tensor where it is learned), or one value a token of the pack, [tokens, 1, 1, 1],
        where the documents need different ones.
        """
        short = self.factors.attention_factor.short
        long: float | Tensor = self.factors.attention_factor.long
        if self.learned is not None:
            long = self.learned.attention_factor()
        if self.one_window(lengths) or short == long:
            return long if self.window(lengths[0]) == "long" else short
        tokens = torch.tensor(lengths)
        values = torch.where(tokens > self.factors.original_length, long, short).float()
        return values.repeat_interleave(tokens)[:, None, None, None].to(torch.cuda.current_device())


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
        self.active = ActiveFactors(factors)
        self._tables: dict[Window, Tensor] = {}

    @property
    def factors(self) -> RopeFactors:
        """The factors of both windows."""
        return self.active.factors

    def set_factors(self, factors: RopeFactors) -> None:
        """Use other factors from the next forward pass on (the search calls this for every candidate)."""
        self.active.factors, self.active.learned = factors, None
        self._tables = {}

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
    ) -> int | tuple[int, ...]:
        """Upstream's length; for a pack with documents of both windows, the lengths of all of them.

        `GPTModel` hands what this returns to `forward`, and does nothing else with it.
        """
        if packed_seq_params is not None and not self.active.one_window(packed_seq_params.lengths):
            return packed_seq_params.lengths
        return super().get_rotary_seq_len(
            inference_context, transformer, transformer_input, transformer_config, packed_seq_params, **kwargs
        )

    def get_freqs_non_repeated(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles [max_seq_len, rotary_dim / 2] in float32, of the window that `max_seq_len` belongs to.

        They are what the export's readers will compute; learned ones carry gradient.
        """
        window, length = self.active.window(max_seq_len), max_seq_len + offset
        device, learned = torch.cuda.current_device(), self.active.learned
        if window == "long" and learned is not None:
            return angle_table(length, learned.inv_freq(), device)[offset:]
        return deployed_angles(length, self.factors, window, device)[offset:]

    def forward(
        self,
        max_seq_len: int | tuple[int, ...],
        packed_seq: bool = False,
        cp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Tensor:
        """Angles [max_seq_len, 1, 1, rotary_dim]; given several lengths, those of every token of the pack.

        Upstream caches by argument, in one cache for all instances that outlives a change of factors; here
        the longest table so far is kept for each window.
        """
        if isinstance(max_seq_len, tuple):
            return torch.cat([self._rows(length) for length in max_seq_len])
        embedding = self._rows(max_seq_len)
        group = cp_group if cp_group is not None else self.cp_group
        if group is not None and group.size() > 1 and not packed_seq:
            return get_pos_emb_on_this_cp_rank(embedding, 0, group)
        return embedding

    def _rows(self, length: int) -> Tensor:
        """Exactly `length` rows: upstream tells a whole pack's table from one document's by its length."""
        window = self.active.window(length)
        if window == "long" and self.active.learned is not None:
            return self.get_emb(length)  # its graph lives for one pass
        table = self._tables.get(window)
        if table is None or len(table) < length:
            table = self._tables[window] = self.get_emb(max(length, self.factors.original_length))
        return table[:length]
