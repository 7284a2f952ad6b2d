"""The scorer of a Megatron model, in any parallel layout."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import accumulate, groupby

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.forward import (
    Read,
    local_sample,
    nll_and_correct,
    only_rows,
    stage_output,
    whole_logits,
)
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import TokenScores


class MegatronScorer:
    """The `Scorer` of a Megatron model under tensor, pipeline, context and data parallelism.

    Samples are dealt to the data-parallel groups in turn; a group sends its samples through its pipeline as
    micro-batches.

    Args:
        model: from `load_model`; `model.set_factors` between two calls changes its own factors.
        restrict_last_layer: let the last layer work for the scored tokens only, where that is exact (see
            `only_rows`); False for comparison.
    """

    def __init__(self, model: LoadedModel, restrict_last_layer: bool = True) -> None:
        self.model = model
        self.restrict = restrict_last_layer
        self.vocab_size = int(model.args.vocab_size)
        # One sample a data-parallel group and pipeline stage.
        self.workers = mpu.get_data_parallel_world_size() * mpu.get_pipeline_model_parallel_world_size()

    def __call__(
        self,
        samples: Sequence[Sample],
        factors: Sequence[RopeFactors] | None = None,
        description: str = "",
    ) -> list[TokenScores]:
        """See `Scorer`."""
        rows = self._read(nll_and_correct, 2, samples, factors, description)
        return [TokenScores(nll, correct > 0.5) for nll, correct in (part.unbind(1) for part in rows)]

    def logits(self, samples: Sequence[Sample], description: str = "") -> list[Tensor]:
        """See `Scorer`."""
        padded = int(self.model.args.padded_vocab_size)
        rows = self._read(whole_logits, padded, samples, None, description)
        return [part[:, : self.vocab_size] for part in rows]

    @torch.no_grad()
    def _read(
        self,
        read: Read,
        width: int,
        samples: Sequence[Sample],
        factors: Sequence[RopeFactors] | None,
        description: str,
    ) -> Sequence[Tensor]:
        """What is read of each sample's scored tokens, float32 [scored, width] on the CPU."""
        sizes = [sample.scored for sample in samples]
        starts = [0, *accumulate(sizes)]
        # Every rank adds what it knows; a token is known to one rank of each group of replicas.
        totals = torch.zeros(starts[-1], width, device=torch.device(torch.cuda.current_device()))
        reports = mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0
        groups, group = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        mine = range(group, len(samples), groups)
        hidden = not description or dist.get_rank() > 0
        bar = tqdm(total=len(mine), desc=description, unit="sample", disable=hidden)

        def forward_step(numbers: Iterator[int], chunk: GPTModel) -> tuple[Tensor, Callable[..., None]]:
            number = next(numbers)
            bar.update()
            if factors is not None and chunk.rotary_pos_emb.factors is not factors[number]:
                chunk.rotary_pos_emb.set_factors(factors[number])
            part = local_sample(samples[number])
            with only_rows(chunk, part.rows) if self.restrict else nullcontext(False) as restricted:
                output = stage_output(chunk, part, self.vocab_size, restricted=restricted, read=read)

            def note(rows: Tensor, non_loss_data: bool) -> None:  # noqa: ARG001 - upstream's signature
                if reports:
                    totals[starts[number] + part.numbers] = rows

            return output, note

        def length_of(number: int) -> int:
            return len(samples[number].tokens)

        with bar:
            # A pipeline's messages have one shape: lengths come one after the other.
            for length, same in groupby(sorted(mine, key=length_of), key=length_of):
                numbers = list(same)
                get_forward_backward_func()(
                    forward_step_func=forward_step,
                    data_iterator=iter(numbers),
                    model=self.model.chunks,
                    num_microbatches=len(numbers),
                    seq_length=length,
                    micro_batch_size=1,
                    forward_only=True,
                    collect_non_loss_data=True,
                )
        dist.all_reduce(totals)
        return totals.cpu().split(sizes)
