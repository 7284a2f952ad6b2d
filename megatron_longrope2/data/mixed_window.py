"""Training segments of both context windows, mixed within every global batch (LongRoPE2, section 3.3).

A short-window segment holds whole documents of at most `original_length` tokens, each with its own attention
span and positions from 0. A long-window segment holds documents longer than that; it is either one attention
span of `target_length` tokens ("full", the paper) or one span a document ("document", the authors' code). The
model then needs one rule: a span longer than `original_length` gets the rescaled RoPE, any other the
original. No padding makes a short span long.

Upstream's `GPTDataset` cuts documents wherever a sample ends and pads nothing, so only its file format
(`IndexedDataset`) and its item format (packed samples of `inter_document_masking`) are used here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_longrope2.data.mixing import Mixing
from megatron_longrope2.data.packing import Packing, pack_cut, pack_whole, round_up
from megatron_longrope2.data.pools import Pool, open_pool
from megatron_longrope2.errors import InputError


@dataclass(frozen=True)
class MixedWindowConfig:
    """What the segments are made of.

    Attributes:
        pools: where documents come from and their shares of the segments; pools of weight 0 are left out.
        original_length: the pre-trained window L, tokens.
        target_length: tokens of a segment T; with `original_length`, a multiple of `alignment`.
        global_batch_size: segments of an optimizer step; the windows are mixed within it.
        seed: of the packing, of each epoch's order and of the mixing.
        context_parallel_size: CP ranks that share a segment.
        sequence_parallel_size: tensor-parallel size where sequence parallelism is on, else 1.
        long_window_attention: "full" or "document", see the module's docstring.
        repeat: allow a pool to be read again when the run needs more segments than it has.
        vocab_size: of the model; pools with other token ids are refused. None: not checked.
        tokenizer: folder of the model's; pools that another one made are refused. None: not compared.
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
        for name, unit, of in (
            ("original_length", self.alignment, "2 x context parallel size"),
            (
                "target_length",
                self.alignment * self.sequence_parallel_size,
                "2 x context parallel size x tensor parallel size with sequence parallelism",
            ),
        ):
            length = getattr(self, name)
            if length < 1 or length % unit:
                raise InputError(
                    f"{name}: {length} is not a multiple of {unit} ({of}); change the length or the layout"
                )
        if self.long_window_attention not in ("full", "document"):
            raise InputError(
                f'long_window_attention: "{self.long_window_attention}" is not "full" or "document"'
            )
        if not any(pool.weight for pool in self.pools):
            raise InputError("pools: none has a weight above 0; give at least one")

    @property
    def alignment(self) -> int:
        """Every span is a multiple of this: context parallelism deals it out in 2 x CP equal chunks.

        Sequence parallelism cuts a rank's whole share evenly, wherever documents end, and adds nothing.
        """
        return 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1

    @property
    def min_document_length(self) -> int:
        """A document of fewer tokens would give some context-parallel rank padding only."""
        return self.context_parallel_size


class _PackedPool:
    """One pool's documents, their packing, and the segments' order in every epoch."""

    def __init__(self, pool: Pool, config: MixedWindowConfig, seed: list[int]) -> None:
        self.pool = pool
        self.documents: IndexedDataset = open_pool(pool.path_prefix, config.vocab_size, config.tokenizer)
        self.one_span = pool.window == "long" and config.long_window_attention == "full"
        self.alignment = 1 if self.one_span else config.alignment
        self.packing = self._pack(config, seed)
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None  # of the latest epoch

    def _pack(self, config: MixedWindowConfig, seed: list[int]) -> Packing:
        lengths, limit = self.documents.sequence_lengths, config.original_length
        short = self.pool.window == "short"
        if short and lengths.max() > limit:
            raise InputError(
                f"{self.pool.path_prefix}: holds a document of {lengths.max()} tokens, too long for the "
                f"short window of {limit}; preprocess it with original length {limit}"
            )
        if not short and lengths.min() <= limit:
            raise InputError(
                f"{self.pool.path_prefix}: holds a document of {lengths.min()} tokens, not longer than the "
                f"short window of {limit}; preprocess it with original length {limit}"
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
        spans = -(-self.packing.length // self.alignment) * self.alignment
        totals = np.concatenate(([0], np.cumsum(spans)))[self.packing.starts]
        room = segment_length - np.diff(totals)
        return int((np.diff(self.packing.starts) + -(-room // original_length)).max())


class MixedWindowDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Item i is a function of (config, i) alone, so Megatron's samplers resume it at any sample.

    An item is what Megatron's packed samples are (`get_batch_on_this_tp_rank`,
    `flatten_batch_for_packed_sequences` in megatron/core/utils.py), T = `target_length`:
        tokens, labels, position_ids: int64 [T]; positions restart in every span.
        loss_mask: float32 [T]; 0 on padding and where a span has no next token.
        cu_seqlens: int32 [cu_seqlens_width], ends of spans from 0 to T, filled up with T.
        max_seqlen: int32 [], the longest span.
    Every span is a multiple of `config.alignment` including its own padding, which follows its tokens: under
    a causal mask no token sees it, so there is no second `cu_seqlens_padded`.

    Args:
        config: pools, lengths, layout and seed.
        num_samples: length of the dataset, segments of the whole run.
        pad_id: token id written on padding (its loss is masked); any id of the vocabulary.
        split: which samplers and batch sizes Megatron picks.

    Raises:
        InputError: a pool is missing, corrupt or of another `original_length`, or has too few segments.
    """

    def __init__(
        self, config: MixedWindowConfig, num_samples: int, *, pad_id: int, split: Split = Split.train
    ) -> None:
        self.config = config
        self.split = split
        self._num_samples = num_samples
        self._pad_id = pad_id
        used = [(i, pool) for i, pool in enumerate(config.pools) if pool.weight]
        self._pools = [_PackedPool(pool, config, [config.seed, i]) for i, pool in used]
        self._mixing = Mixing([pool.weight for _, pool in used], config.global_batch_size, config.seed)
        self._samples = self._mixing.counts(num_samples)
        if not config.repeat:
            self._refuse_repetition()
        self.cu_seqlens_width = 1 + max(
            pool.most_spans(config.target_length, config.original_length) for pool in self._pools
        )

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        which, sample = self._mixing.locate(int(index))
        pool = self._pools[which]
        pieces = pool.packing.pieces(pool.segment(sample))
        return self._assemble(pool, pieces)

    def window(self, index: int) -> str:
        """The window ("short" or "long") that item `index` belongs to."""
        return self._pools[self._mixing.locate(int(index))[0]].pool.window

    def statistics(self) -> list[dict[str, Any]]:
        """One row a pool: its size, what packing wastes and drops, and how often the run reads it.

        `waste` is the padded share of its segments; `samples` and `epochs` are of the whole run.
        """
        rows = []
        for pool, samples in zip(self._pools, self._samples, strict=True):
            packing = pool.packing
            capacity = packing.segments * self.config.target_length
            rows.append(
                {
                    "pool": pool.pool.path_prefix,
                    "window": pool.pool.window,
                    "weight": pool.pool.weight,
                    "documents": len(pool.documents),
                    "tokens": packing.tokens,
                    "segments": packing.segments,
                    "waste": 1 - packing.tokens / capacity,
                    "dropped_pieces": packing.dropped_pieces,
                    "dropped_tokens": packing.dropped_tokens,
                    "samples": samples,
                    "epochs": samples / packing.segments,
                }
            )
        return rows

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
            # One token more where the document goes on after a cut: the target of the piece's last token.
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
            # Padding that belongs to no document, in spans that stay short.
            ends.extend(range(at + limit, length, limit))
            if at < length:
                ends.append(length)
        return self._item(tokens, labels, loss_mask, np.array(ends, dtype=np.int32))

    def _item(
        self, tokens: np.ndarray, labels: np.ndarray, loss_mask: np.ndarray, ends: np.ndarray
    ) -> dict[str, torch.Tensor]:
        spans = np.diff(ends)
        cu_seqlens = np.full(self.cu_seqlens_width, ends[-1], dtype=np.int32)
        cu_seqlens[: len(ends)] = ends
        position_ids = np.arange(len(tokens), dtype=np.int64) - np.repeat(ends[:-1], spans)
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            "position_ids": torch.from_numpy(position_ids),
            "cu_seqlens": torch.from_numpy(cu_seqlens),
            "max_seqlen": torch.tensor(spans.max(), dtype=torch.int32),
        }


def format_statistics(rows: Iterable[dict[str, Any]]) -> str:
    """The rows of `MixedWindowDataset.statistics` as aligned lines for a log."""
    return "\n".join(
        f"{row['window']:>5} window: {row['samples']:,} segments ({row['epochs']:.2f} epochs) of "
        f"{row['pool']}: {row['documents']:,} documents, {row['tokens']:,} tokens in {row['segments']:,} "
        f"segments, {row['waste']:.2%} padding, {row['dropped_pieces']:,} pieces "
        f"({row['dropped_tokens']:,} tokens) dropped as too small for the layout"
        for row in rows
    )
