"""What training and validation log beside the loss, through Megatron's own console, TensorBoard and W&B.

A report is a tensor [sum, count]. Megatron adds both up over the micro-batches of a step (or of a whole
validation) and over the data- and context-parallel ranks, and logs their quotient.
"""

import time
from argparse import Namespace
from itertools import pairwise

import torch
from megatron.core import mpu
from megatron.core.num_microbatches_calculator import get_num_microbatches
from torch import Tensor

from megatron_longrope2.rope import Window
from megatron_longrope2.training.arguments import training_pools, validation_pools
from megatron_longrope2.training.batch import Batch

# Weight of a window's latest loss: so small that a float32 sum of losses of 1e-12 or more absorbs it.
TRACE = 1e-20


def in_window(batch: Batch, window: Window, original_length: int) -> Tensor:
    """Which of this rank's tokens belong to documents of the window, bool [n]."""
    lengths = batch.packed.document_lengths
    return lengths > original_length if window == "long" else lengths <= original_length


def sum_and_count(batch: Batch, masked: Tensor, chosen: Tensor) -> Tensor:
    """Sum of the losses of the chosen tokens, and how many of these have a loss: float32 [2]."""
    assert batch.loss_mask is not None
    return torch.stack([(masked * chosen).sum(), (batch.loss_mask.view(-1) * chosen).sum()])


class TrainingReport:
    """Loss and tokens of each window, and tokens a second.

    A window without a token in the global batch is logged with its latest loss, so that averages over a log
    interval are not drawn towards 0. Everything else in a report depends on the batch alone.
    """

    def __init__(self, args: Namespace) -> None:
        self._windows = sorted({pool.window for pool in training_pools(args)[0] if pool.weight})
        self._original_length: int = args.original_length
        self._latest: dict[str, Tensor | float] = dict.fromkeys(self._windows, 0.0)
        self._clock: float | None = None

    def start(self) -> None:
        """Start the clock, before the run's first micro-batch."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def __call__(self, batch: Batch, masked: Tensor) -> dict[str, Tensor]:
        """See `loop.batch_loss`."""
        assert self._clock is not None
        ranks = mpu.get_data_parallel_world_size(with_context_parallel=True)
        report = {}
        for window in self._windows:
            chosen = in_window(batch, window, self._original_length)
            loss = sum_and_count(batch, masked, chosen)
            report[f"{window} window loss"] = loss + self._latest[window]
            self._latest[window] = torch.where(loss[1] > 0, TRACE * loss / loss[1], self._latest[window])
            # A sum, not a mean: the counts of all micro-batches and ranks add up to 1.
            share = 1 / (get_num_microbatches() * ranks)
            report[f"{window} window tokens"] = torch.stack([loss[1], torch.full_like(loss[1], share)])
        now = time.perf_counter()
        # Every rank waits for the same seconds.
        rate = [masked.numel() * ranks, now - self._clock]
        report["tokens per second"] = torch.tensor(rate, dtype=torch.float32, device=masked.device)
        self._clock = now
        return report


class ValidationReport:
    """Loss of the short window (original RoPE), and of the long window as a whole and by position.

    Megatron prints the perplexity beside each. A token's position is the number of tokens of its document
    before it; buckets end at the original length and its doublings.
    """

    def __init__(self, args: Namespace) -> None:
        self._windows = sorted({pool.window for pool in validation_pools(args) if pool.weight})
        self._original_length: int = args.original_length
        self._edges = position_edges(args.original_length, args.seq_length)

    def __call__(self, batch: Batch, masked: Tensor) -> dict[str, Tensor]:
        """See `loop.batch_loss`."""
        report = {}
        for window in self._windows:
            chosen = in_window(batch, window, self._original_length)
            report[f"{window} window loss"] = sum_and_count(batch, masked, chosen)
            if window == "long":
                places = batch.packed.positions
                for start, end in pairwise(self._edges):
                    bucket = chosen & (places >= start) & (places < end)
                    report[f"long window loss at {start}-{end}"] = sum_and_count(batch, masked, bucket)
        return report


def position_edges(original_length: int, length: int) -> list[int]:
    """Bucket edges 0, L, 2L, 4L, ... up to `length`: bucket k holds positions from edge k to edge k + 1."""
    edges = [0]
    while original_length < length:
        edges.append(original_length)
        original_length *= 2
    return [*edges, length]
