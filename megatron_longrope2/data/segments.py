"""Training segments of both context windows, mixed within every global batch.

This is mixed context window training (LongRoPE2, arXiv 2502.20082, section 3.3).

A short-window segment holds whole documents of at most `original_length` tokens, each with its own attention
span and positions from 0. A long-window segment holds documents longer than that; it is either one attention
span of `target_length` tokens ("full", the paper) or one span a document ("document", the authors' code). The
model then needs one rule: a span longer than `original_length` gets the rescaled RoPE, any other the
original. No padding makes a short span long.

Upstream's `GPTDataset` cuts documents wherever a sample ends and pads nothing, so only its file format
(`IndexedDataset`) and its item format (packed samples of `inter_document_masking`) are used here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_longrope2.data.packing import Packing, pack_cut, pack_whole, round_up
from megatron_longrope2.data.pool_order import PoolOrder
from megatron_longrope2.data.pools import Pool, open_pool
from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import Window
from megatron_longrope2.tables import text_table


@dataclass(frozen=True)
class SegmentConfig:
    """What the segments are made of.

    Attributes:
        pools: where documents come from and their shares of the segments; pools of weight 0 are left out.
        original_length: the pre-trained window L, tokens; a multiple of `alignment`.
        target_length: tokens of a segment T; a multiple of `alignment` and `sequence_parallel_size`.
        global_batch_size: segments of an optimizer step; the windows are mixed within it.
        seed: seed of the packing, of each epoch's order and of the order of the pools.
        context_parallel_size: CP ranks that share a segment.
        sequence_parallel_size: the tensor-parallel size where sequence parallelism is on, otherwise 1.
        long_window_attention: "full" or "document", see the module's docstring.
        repeat: whether a pool may be read again when the run needs more segments than it has.
        vocab_size: the model's; pools with larger token ids are refused. None: not checked.
        tokenizer: folder of the model's; pools made with another tokenizer are refused. None: not checked.

    Raises:
        InputError: a length does not fit the layout or the other length, or no pool is read.
    """

    pools: tuple[Pool, ...]
    original_length: int
    target_length: int
    global_batch_size: int
    seed: int
    context_parallel_size: int = 1
    sequence_parallel_size: int = 1
    long_window_attention: Literal["full", "document"] = "full"
    repeat: bool = False
    vocab_size: int | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.target_length <= self.original_length:
            raise InputError(
                f"target_length: {self.target_length} is not larger than original_length "
                f"{self.original_length}; the long window must be the longer one"
            )
        target_unit = self.alignment * self.sequence_parallel_size
        for name, unit in (("original_length", self.alignment), ("target_length", target_unit)):
            length = getattr(self, name)
            if length < 1 or length % unit:
                raise InputError(
                    f"{name}: {length} is not a multiple of {unit} (2 x context parallel size; the target "
                    "also x tensor parallel size with sequence parallelism); change the length or the layout"
                )
        if self.long_window_attention not in ("full", "document"):
            raise InputError(f"long_window_attention: {self.long_window_attention!r}; use full or document")
        if not any(pool.weight for pool in self.pools):
            raise InputError("pools: none has a weight above 0; give at least one")

    @property
    def alignment(self) -> int:
        """Every span is a multiple of this, because context parallelism cuts it into 2 x CP equal chunks.

        Sequence parallelism cuts a rank's whole share evenly, wherever documents end; it needs no alignment.
        """
        return 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1

    @property
    def min_document_length(self) -> int:
        """A document of fewer tokens would leave some context-parallel rank with nothing but padding."""
        return self.context_parallel_size


class _PackedPool:
    """One pool's documents, their packing, and the segments' order in every epoch."""

    def __init__(self, pool: Pool, config: SegmentConfig, seed: list[int]) -> None:
        self.pool = pool
        self.documents: IndexedDataset = open_pool(pool.path_prefix, config.vocab_size, config.tokenizer)
        self.one_span = pool.window == "long" and config.long_window_attention == "full"
        self.alignment = 1 if self.one_span else config.alignment
        self.packing = self._pack(config, seed)
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None  # of the latest epoch

    def _pack(self, config: SegmentConfig, seed: list[int]) -> Packing:
        lengths, limit = self.documents.sequence_lengths, config.original_length
        short = self.pool.window == "short"
        extreme = int(lengths.max() if short else lengths.min())
        if short == (extreme > limit):
            fault = "too long for" if short else "not longer than"
            raise InputError(
                f"{self.pool.path_prefix}: holds a document of {extreme} tokens, {fault} the short window of "
                f"{limit}; preprocess it with --original-length {limit}"
            )
        packing = (pack_whole if short else pack_cut)(
            lengths,
            config.target_length,
            alignment=self.alignment,
            min_length=1 if self.one_span else config.min_document_length,
            seed=seed,
        )
        if not packing.segments:
            raise InputError(
                f"{self.pool.path_prefix}: every document is shorter than {config.min_document_length} "
                "tokens; add longer ones or use a smaller context parallel size"
            )
        return packing

    def segment(self, index: int) -> int:
        """The segment that is the pool's `index`-th sample; every epoch has its own order."""
        epoch, place = divmod(index, self.packing.segments)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([*self._seed, epoch]).permutation(self.packing.segments)
            self._order = (epoch, order)
        return int(self._order[1][place])

    def most_spans(self, segment_length: int, original_length: int) -> int:
        """The largest number of spans in a segment, padding spans included."""
        if self.one_span:
            return 1
        spans = round_up(self.packing.length, self.alignment)
        totals = np.concatenate(([0], np.cumsum(spans)))[self.packing.starts]
        room = segment_length - np.diff(totals)
        return int((np.diff(self.packing.starts) + -(-room // original_length)).max())


class SegmentDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Training segments. Item i is a function of (config, i) alone, so that a run can resume at any sample.

    An item has the format of Megatron's packed samples (`get_batch_on_this_tp_rank`,
    `flatten_batch_for_packed_sequences` in megatron/core/utils.py), with T = `target_length`:
        tokens, labels, position_ids: int64 [T]; positions restart in every span.
        loss_mask: float32 [T]; 0 on padding and where a span has no next token.
        cu_seqlens: int32 [cu_seqlens_width], ends of spans from 0 to T, padded with T.
        max_seqlen: int32 [], tokens of the longest span.

    Every span is a multiple of `config.alignment` including its own padding, which follows its tokens: under
    a causal mask no token sees it, so there is no second `cu_seqlens_padded`.

    Args:
        config: pools, lengths, layout and seed.
        num_samples: length of the dataset: segments of the whole run.
        pad_id: token id written on padding (its loss is masked); any id of the vocabulary.
        split: decides which samplers and batch sizes Megatron picks.

    Raises:
        InputError: a pool is missing or corrupt, was made for another `original_length`, or has too few
            segments.
    """

    def __init__(
        self, config: SegmentConfig, num_samples: int, *, pad_id: int, split: Split = Split.train
    ) -> None:
        self.config = config
        self.split = split
        self._num_samples = num_samples
        self._pad_id = pad_id
        used = [(i, pool) for i, pool in enumerate(config.pools) if pool.weight]
        self._pools = [_PackedPool(pool, config, [config.seed, i]) for i, pool in used]
        self._order = PoolOrder([pool.weight for _, pool in used], config.global_batch_size, config.seed)
        self._samples = self._order.counts(num_samples)
        if not config.repeat:
            self._refuse_repetition()
        self.cu_seqlens_width = 1 + max(
            pool.most_spans(config.target_length, config.original_length) for pool in self._pools
        )

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        which, sample = self._order.locate(int(index))
        pool = self._pools[which]
        return self._assemble(pool, pool.packing.pieces(pool.segment(sample)))

    def window(self, index: int) -> Window:
        """The window that item `index` belongs to."""
        return self._pools[self._order.locate(int(index))[0]].pool.window

    def statistics(self) -> list[dict[str, Any]]:
        """One row a pool: its size, what packing wastes and drops, and how often the run reads it.

        `waste` is the padded share of its segments; `dropped_pieces` and `dropped_tokens` are too small for
        the parallel layout; `samples` and `epochs` are of the whole run.
        """
        return [
            {
                "pool": pool.pool.path_prefix,
                "window": pool.pool.window,
                "weight": pool.pool.weight,
                "documents": len(pool.documents),
                "tokens": pool.packing.tokens,
                "segments": pool.packing.segments,
                "waste": 1 - pool.packing.tokens / (pool.packing.segments * self.config.target_length),
                "dropped_pieces": pool.packing.dropped_pieces,
                "dropped_tokens": pool.packing.dropped_tokens,
                "samples": samples,
                "epochs": samples / pool.packing.segments,
            }
            for pool, samples in zip(self._pools, self._samples, strict=True)
        ]

    def _refuse_repetition(self) -> None:
        for pool, samples in zip(self._pools, self._samples, strict=True):
            if samples > pool.packing.segments:
                raise InputError(
                    f"{pool.pool.path_prefix}: the run needs {samples} segments of "
                    f"{self.config.target_length} tokens, the pool has {pool.packing.segments}; add "
                    "documents, train for fewer samples, or allow repetition"
                )

    def _assemble(self, pool: _PackedPool, pieces: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
        length, limit = self.config.target_length, self.config.original_length
        tokens = np.full(length, self._pad_id, dtype=np.int64)
        labels = np.full(length, self._pad_id, dtype=np.int64)
        loss_mask = np.zeros(length, dtype=np.float32)
        ends = [0]
        at = 0
        for document, offset, count in pieces:
            # One more token where the document continues after a cut: the target of the piece's last token.
            more = min(1, int(pool.documents.sequence_lengths[document]) - offset - count)
            text = pool.documents.get(document, offset, count + more)
            tokens[at : at + count] = text[:count]
            labels[at : at + count + more - 1] = text[1:]
            loss_mask[at : at + count + more - 1] = 1
            if pool.one_span and at:
                labels[at - 1], loss_mask[at - 1] = text[0], 1
            at += round_up(count, pool.alignment)
            ends.append(at)
        if pool.one_span:
            ends = [0, length]
        else:
            # Padding that belongs to no document, in spans of at most the short window.
            ends.extend(range(at + limit, length, limit))
            if at < length:
                ends.append(length)
        spans = np.diff(ends)
        cu_seqlens = np.full(self.cu_seqlens_width, length, dtype=np.int32)
        cu_seqlens[: len(ends)] = ends
        position_ids = np.arange(length, dtype=np.int64) - np.repeat(ends[:-1], spans)
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            "position_ids": torch.from_numpy(position_ids),
            "cu_seqlens": torch.from_numpy(cu_seqlens),
            "max_seqlen": torch.tensor(spans.max(), dtype=torch.int32),
        }


def format_statistics(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `SegmentDataset.statistics` as a table for a log."""
    formats = {str: "", int: ",", float: ".4g"}
    cells = [[format(value, formats[type(value)]) for value in row.values()] for row in rows]
    return text_table([name.replace("_", " ") for name in rows[0]], cells, left=2)
