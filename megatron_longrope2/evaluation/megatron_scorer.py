"""Token scores on a Megatron model, under any parallel layout, with logits of the scored tokens only."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import mpu
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, vocab_parallel_cross_entropy
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.evaluation.scorers import LOGIT_ROWS, TokenScores
from megatron_longrope2.model.loading import LoadedModel
from megatron_longrope2.search.last_layer import can_restrict, only_rows
from megatron_longrope2.search.objective import Sample
from megatron_longrope2.search.scoring import local_sample


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
                chosen = list(numbers)
                outputs = self._run([samples[index] for index in chosen], bar)
                if mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0:
                    for index, (places, scores) in zip(chosen, outputs, strict=True):
                        totals[starts[index] + places] = scores
        torch.distributed.all_reduce(totals)
        nll, correct = totals.cpu().unbind(1)
        sizes = [sample.scored for sample in samples]
        return [TokenScores(n, c > 0.5) for n, c in zip(nll.split(sizes), correct.split(sizes), strict=True)]

    def _run(self, samples: Sequence[Sample], bar: Any) -> list[tuple[Tensor, Tensor]]:
        """On the last stage, for each sample which of its scored tokens this rank holds, and their scores [n,
        2]."""
        remaining = iter(samples)

        def forward_step(_: Any, chunk: GPTModel) -> tuple[Tensor, Any]:
            sample = next(remaining)
            output, places = _forward(chunk, sample, self.vocab_size)
            bar.update()
            return output, lambda scores, non_loss_data: (places, scores)  # noqa: ARG005 - upstream's

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=None,
            model=self.model.chunks,
            num_microbatches=len(samples),
            seq_length=len(samples[0].tokens),
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )


def _forward(chunk: GPTModel, sample: Sample, vocab_size: int) -> tuple[Tensor, Tensor]:
    """One stage: hidden states, or on the last scores [n, 2] of this rank's tokens; and which scored ones
    they are."""
    local = local_sample(sample)
    order = sample.mask.to(local.rows.device).long()
    order[0] = 0
    places = order.cumsum(0)[local.positions[0, local.rows]]
    restrict = can_restrict(chunk, len(local.rows))
    processor = partial(
        _scores_of_rows,
        rows=None if restrict else local.rows,
        scored_labels=local.labels,
        vocab_size=vocab_size,
    )
    with only_rows(chunk, local.rows) if restrict else nullcontext():
        return chunk(local.tokens, local.positions, None, output_processor=processor), places


def _scores_of_rows(
    *,
    rows: Tensor | None,
    scored_labels: Tensor,
    vocab_size: int,
    hidden_states: Tensor,
    output_layer: torch.nn.Module,
    output_weight: Tensor | None,
    scale_logits: Any,
    config: Any,
    **_: Any,
) -> Tensor:
    """Megatron's `output_processor`: hidden_states [T / cp (/ tp), 1, hidden] to float32 [n, 2] (nll,
    correct)."""
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(hidden_states)
    hidden = hidden_states[:, 0] if rows is None else hidden_states[rows, 0]
    weight = output_layer.weight if output_weight is None else output_weight
    scores = [hidden.new_zeros(0, 2, dtype=torch.float32)]
    for part, labels in zip(hidden.split(LOGIT_ROWS), scored_labels.split(LOGIT_ROWS), strict=True):
        logits = scale_logits(F.linear(part, weight)).float()
        scores.append(_scores_of_logits(logits, labels, vocab_size))
    return torch.cat(scores)


def _scores_of_logits(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """This tensor-parallel rank's logits [n, padded vocabulary / tp] to [n, 2]; `logits` is used up."""
    first = mpu.get_tensor_model_parallel_rank() * logits.shape[1]
    # Megatron pads the vocabulary with rows that give logit 0.
    logits[:, max(vocab_size - first, 0) :] = -torch.inf
    own = (labels >= first) & (labels < first + logits.shape[1])
    at_label = logits.gather(1, torch.where(own, labels - first, 0)[:, None])[:, 0]
    highest = torch.stack([logits.max(1).values, at_label.masked_fill(~own, -torch.inf)])
    if mpu.get_tensor_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(
            highest, torch.distributed.ReduceOp.MAX, group=mpu.get_tensor_model_parallel_group()
        )
    correct = highest[1] >= highest[0]
    nll = vocab_parallel_cross_entropy(logits[:, None], labels[:, None])[:, 0]
    return torch.stack([nll, correct.float()], dim=1)
