"""Token scores on a Megatron model, under any parallel layout, with logits of the scored tokens only."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.evaluation.scorers import TokenScores
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.search.objective import Sample
from megatron_longrope2.search.scoring import forward_in_turn, local_sample, nll_of_logits, token_scores


class MegatronScorer:
    """Scores on a Megatron model under tensor, pipeline, context and data parallelism.

    Samples are dealt to the data-parallel groups in turn. `model.set_factors` between two calls scores other
    factors on the same weights.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.vocab_size = int(model.args.vocab_size)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample], description: str = "") -> list[TokenScores]:
        """See `scorers.Scorer`.

        Raises:
            InputError: a sample's length does not suit the layout.
        """
        device = torch.device(torch.cuda.current_device())
        starts = [0]
        for sample in samples:
            starts.append(starts[-1] + sample.scored)
        # Every rank adds what it knows; a token is known to one rank of each group of replicas.
        totals = torch.zeros(starts[-1], 2, dtype=torch.float32, device=device)
        groups, group = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        mine = range(group, len(samples), groups)
        show = bool(description) and torch.distributed.get_rank() == 0
        with tqdm(total=len(mine), desc=description, unit="sample", disable=not show) as bar:
            # A pipeline's messages have one shape: lengths one after the other.
            ordered = sorted(mine, key=lambda index: len(samples[index].tokens))
            for _, numbers in groupby(ordered, key=lambda index: len(samples[index].tokens)):
                chosen = [(index, samples[index]) for index in numbers]
                outputs = self._run([sample for _, sample in chosen], bar)
                if mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0:
                    for (index, sample), scores in zip(chosen, outputs, strict=True):
                        totals[starts[index] + _local_places(sample)] = scores
        torch.distributed.all_reduce(totals)
        nll, correct = totals.cpu().unbind(1)
        sizes = [sample.scored for sample in samples]
        return [TokenScores(n, c > 0.5) for n, c in zip(nll.split(sizes), correct.split(sizes), strict=True)]

    def _run(self, samples: Sequence[Sample], bar: Any) -> list[Tensor]:
        """On the last stage, scores [n, 2] of those scored tokens of each sample that this rank holds."""

        def forward(chunk: GPTModel, sample: Sample) -> Tensor:
            bar.update()
            return token_scores(
                chunk, local_sample(sample), self.vocab_size, of_logits=_nll_and_correct_of_logits
            )

        return forward_in_turn(self.model, samples, len(samples[0].tokens), forward)


def _local_places(sample: Sample) -> Tensor:
    """Which of a sample's scored tokens this rank holds: int64 [n], numbers among the scored ones."""
    local = local_sample(sample)
    order = sample.mask.to(local.rows.device).long()
    order[0] = 0
    return order.cumsum(0)[local.positions[0, local.rows]]


def _nll_and_correct_of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Float32 [n, 2]; see `search.scoring.OfLogits`."""
    first = mpu.get_tensor_model_parallel_rank() * logits.shape[1]
    own = (labels >= first) & (labels < first + logits.shape[1])
    at_label = logits.gather(1, torch.where(own, labels - first, 0)[:, None])[:, 0]
    highest = torch.stack([logits.max(1).values, at_label.masked_fill(~own, -torch.inf)])
    if mpu.get_tensor_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(
            highest, torch.distributed.ReduceOp.MAX, group=mpu.get_tensor_model_parallel_group()
        )
    correct = highest[1] >= highest[0]
    return torch.stack([nll_of_logits(logits, labels), correct.float()], dim=1)
