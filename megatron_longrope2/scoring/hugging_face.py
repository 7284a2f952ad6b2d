"""The scorer of a transformers model."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from megatron_longrope2.hf import set_factors
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import LOGIT_ROWS, TokenScores


class HFScorer:
    """The `Scorer` of a transformers causal language model, in one process (see `hf.load`)."""

    workers = 1

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def __call__(
        self,
        samples: Sequence[Sample],
        factors: Sequence[RopeFactors] | None = None,
        description: str = "",
    ) -> list[TokenScores]:
        """See `Scorer`."""
        scores = []
        bar = tqdm(samples, desc=description, unit="sample", disable=not description)
        for number, sample in enumerate(bar):
            if factors is not None:
                set_factors(self.model, factors[number])
            scores.append(self._score(sample))
        return scores

    @torch.no_grad()
    def logits(self, samples: Sequence[Sample], description: str = "") -> list[Tensor]:
        """See `Scorer`."""
        bar = tqdm(samples, desc=description, unit="sample", disable=not description)
        return [torch.cat([logits.cpu() for logits, _ in self._parts(sample)]) for sample in bar]

    def _score(self, sample: Sample) -> TokenScores:
        parts = [
            (F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels)
            for logits, labels in self._parts(sample)
        ]
        nll, correct = (torch.cat(list(column)).cpu() for column in zip(*parts, strict=True))
        return TokenScores(nll, correct)

    def _parts(self, sample: Sample) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits float32 [n, vocabulary] and labels [n] of the scored tokens, `LOGIT_ROWS` at a time."""
        tokens = sample.tokens.to(self.model.device)
        rows = sample.mask[1:].nonzero().squeeze(1).to(tokens.device)
        hidden = self.model.base_model(tokens[None], use_cache=False).last_hidden_state[0, rows]
        head = self.model.get_output_embeddings()
        for part, labels in zip(hidden.split(LOGIT_ROWS), tokens[rows + 1].split(LOGIT_ROWS), strict=True):
            yield head(part).float(), labels
