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
from functools import lru_cache
from math import gcd
from typing import Literal

import numpy as np
import torch

from megatron_longrope2.data.dealing import deal
from megatron_longrope2.data.manifest import Pool
from megatron_longrope2.data.packing import pack_cut, pack_whole, round_up
from megatron_longrope2.data.pools import open_pool
from megatron_longrope2.errors import InputError
from megatron_longrope2.tables import text_table

_LONGEST_PATTERN = 10_000_000

# What a segment is made of: for each piece (document, offset in it, tokens).
Pieces = list[tuple[int, int, int]]


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
        data_parallel_size, micro_batch_size: how a global batch is dealt out; the batches' contents and the
            losses do not depend on it.
        long_window_attention: "full" or "document", see the module's docstring.
        single_window: conventional mid-training, without a short window (LongRoPE2, Table 7): segments of
            short documents have the long window's attention too.
        repeat: whether a pool may be read again when the run needs more segments than it has.
        vocab_size: the model's; pools with larger token ids are refused. None: not checked.
        tokenizer: folder of the model's; pools made with another tokenizer are refused. None: not checked.

    Raises:
        InputError: a length does not fit the layout, or no pool is read.
    """

    pools: tuple[Pool, ...]
    original_length: int
    target_length: int
    global_batch_size: int
    seed: int
    context_parallel_size: int = 1
    sequence_parallel_size: int = 1
    data_parallel_size: int = 1
    micro_batch_size: int = 1
    long_window_attention: Literal["full", "document"] = "full"
    single_window: bool = False
    repeat: bool = False
    vocab_size: int | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        unit, target_unit = self.alignment, self.alignment * self.sequence_parallel_size
        if self.original_length % unit or self.target_length % target_unit:
            raise InputError(
                f"original_length: {self.original_length} is not a multiple of {unit} (2 x context parallel "
                f"size), or target_length: {self.target_length} not of {target_unit} (also x tensor parallel "
                "size with sequence parallelism); change the lengths or the layout"
            )
        if not any(pool.weight for pool in self.pools):
            raise InputError("pools: none has a weight above 0; give at least one")

    @property
    def alignment(self) -> int:
        """Every span is a multiple of this, because context parallelism cuts it into 2 x CP equal chunks.

        Sequence parallelism cuts a rank's whole share evenly, wherever documents end; it needs no alignment.
        """
        return 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1


@lru_cache(maxsize=64)
def _shuffled(count: int, *seed: int) -> np.ndarray:
    """A permutation of `count` numbers."""
    return np.random.default_rng(seed).permutation(count)


class PoolOrder:
    """Maps a sample's index in the run to (pool, how many samples of that pool came before it).

    The pools take turns in a fixed pattern of `sum(weights)` slots that holds each pool exactly `weight`
    times, evenly spread, and repeats for ever; inside each global batch the slots are shuffled. Everything
    is a function of (weights, global_batch_size, seed, index) alone, so that a run can resume at any sample.
    After any number of whole global batches a pool's count differs from its exact share by at most
    `(pools + 1) / 2`; after a whole number of patterns it is exact.

    Args:
        weights: whole numbers of at least 1, one for each pool.
        global_batch_size: number of samples that are mixed with each other.
        seed: seed of the shuffle.

    Raises:
        InputError: the pattern would be longer than ten million slots.
    """

    def __init__(self, weights: Sequence[int], global_batch_size: int, seed: int) -> None:
        divisor = gcd(*weights)
        self.weights = np.array([weight // divisor for weight in weights], dtype=np.int64)
        if self.weights.sum() > _LONGEST_PATTERN:
            raise InputError(
                f"weights: {', '.join(map(str, weights))} have no small common ratio; use smaller numbers"
            )
        # The k-th sample of a pool is due at (k + 1/2) / weight of the pattern.
        due = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in self.weights])
        pool = np.repeat(np.arange(len(self.weights)), self.weights)
        order = np.argsort(due, kind="stable")
        self._pattern = pool[order]
        self._rank = np.concatenate([np.arange(weight) for weight in self.weights])[order]
        self._global_batch_size = global_batch_size
        self._seed = seed

    def locate(self, index: int) -> tuple[int, int]:
        """(pool, index within the pool's own endless sequence) of sample `index`."""
        block, place = divmod(index, self._global_batch_size)
        slot = block * self._global_batch_size + int(
            _shuffled(self._global_batch_size, self._seed, block)[place]
        )
        turn, step = divmod(slot, len(self._pattern))
        pool = int(self._pattern[step])
        return pool, int(turn * self.weights[pool] + self._rank[step])

    def counts(self, samples: int) -> list[int]:
        """Samples of each pool in the global batches that the first `samples` samples touch."""
        slots = -(-samples // self._global_batch_size) * self._global_batch_size
        turns, rest = divmod(slots, len(self._pattern))
        partial = np.bincount(self._pattern[:rest], minlength=len(self.weights))
        return [int(n) for n in turns * self.weights + partial]


class _PackedPool:
    """One pool's documents, their packing, and the segments' order in every epoch."""

    def __init__(self, pool: Pool, config: SegmentConfig, seed: tuple[int, int]) -> None:
        self.pool = pool
        self.documents = open_pool(pool.path_prefix, config.vocab_size, config.tokenizer)
        short = pool.window == "short"
        lengths, limit = self.documents.sequence_lengths, config.original_length
        extreme = int(lengths.max() if short else lengths.min())
        if short == (extreme > limit):
            fault = "too long for" if short else "not longer than"
            raise InputError(
                f"{pool.path_prefix}: holds a document of {extreme} tokens, {fault} the short window of "
                f"{limit}; preprocess it with --original-length {limit}"
            )
        self.one_span = (config.single_window or not short) and config.long_window_attention == "full"
        self.alignment = 1 if self.one_span else config.alignment
        self.packing = (pack_whole if short else pack_cut)(
            lengths,
            config.target_length,
            alignment=self.alignment,
            # Fewer tokens would leave some context-parallel rank with nothing but padding.
            min_length=1 if self.one_span else config.context_parallel_size,
            seed=seed,
        )
        self._seed = seed

    def segment(self, index: int) -> int:
        """The segment that is the pool's `index`-th sample; every epoch has its own order."""
        epoch, place = divmod(index, self.packing.segments)
        return int(_shuffled(self.packing.segments, *self._seed, epoch)[place])

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

    Attributes:
        samples: how many samples of each pool with a weight the run reads.
        cu_seqlens_width: see above.

    Args:
        config: pools, lengths, layout and seed.
        num_samples: length of the dataset: segments of the whole run.
        pad_id: token id written on padding (its loss is masked); any id of the vocabulary.

    Raises:
        InputError: a pool is missing or corrupt, was made for another `original_length`, or has too few
            segments.
    """

    def __init__(self, config: SegmentConfig, num_samples: int, *, pad_id: int) -> None:
        self.config = config
        self._num_samples = num_samples
        self._pad_id = pad_id
        self._dealt: tuple[int, list[tuple[_PackedPool, Pieces]]] | None = None
        used = [(i, pool) for i, pool in enumerate(config.pools) if pool.weight]
        self._pools = [_PackedPool(pool, config, (config.seed, i)) for i, pool in used]
        self._order = PoolOrder([pool.weight for _, pool in used], config.global_batch_size, config.seed)
        self.samples = self._order.counts(num_samples)
        for pool, samples in zip(self._pools, self.samples, strict=True):
            held = pool.packing.segments
            if samples > held and not (config.repeat and held):
                raise InputError(
                    f"{pool.pool.path_prefix}: the run needs {samples} segments of {config.target_length} "
                    f"tokens, the pool has {held}; add documents, train for fewer samples, or allow "
                    "repetition"
                )
        self.cu_seqlens_width = 1 + max(
            pool.most_spans(config.target_length, config.original_length) for pool in self._pools
        )

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block, place = divmod(int(index), self.config.global_batch_size)
        if self._dealt is None or self._dealt[0] != block:
            self._dealt = block, self._deal(block)
        return self._assemble(*self._dealt[1][place])

    def _deal(self, block: int) -> list[tuple[_PackedPool, Pieces]]:
        """A global batch in the order in which Megatron deals it to the data-parallel ranks.

        All segments have the same number of tokens, so that the ranks' work differs by attention only.
        """
        size, batch = self.config.global_batch_size, []
        for index in range(block * size, (block + 1) * size):
            which, sample = self._order.locate(index)
            pool = self._pools[which]
            batch.append((pool, pool.packing.pieces(pool.segment(sample))))
        if self.config.data_parallel_size == 1:
            return batch
        squares = [
            float(self.config.target_length**2) if pool.one_span else sum(float(n) ** 2 for *_, n in pieces)
            for pool, pieces in batch
        ]
        order = deal(squares, self.config.data_parallel_size, self.config.micro_batch_size)
        return [batch[number] for number in order]

    def table(self) -> str:
        """One row a pool: its size, what packing wastes and drops, and how often the run reads it."""
        length = self.config.target_length
        rows = [
            {
                "pool": pool.pool.path_prefix,
                "window": pool.pool.window,
                "weight": pool.pool.weight,
                "documents": f"{len(pool.documents):,}",
                "segments": f"{pool.packing.segments:,}",
                "padding": f"{1 - pool.packing.tokens / (pool.packing.segments * length):.2%}",
                "dropped tokens": f"{pool.packing.dropped_tokens:,}",
                "epochs": f"{samples / pool.packing.segments:.3g}",
            }
            for pool, samples in zip(self._pools, self.samples, strict=True)
        ]
        return text_table(list(rows[0]), [list(row.values()) for row in rows], left=2)

    def _assemble(self, pool: _PackedPool, pieces: Pieces) -> dict[str, torch.Tensor]:
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
