"""RULER's synthetic tasks (Hsieh et al. 2024, arXiv 2404.06654), made offline: eleven of its thirteen.

Prompts, in wording, order of random draws and sizing, are those of the public generator as
lm-evaluation-harness carries it, so that scores can be compared with published ones. What differs, and why:

- the haystack of `niah_single_2`, `niah_single_3`, `niah_multikey_1`, `niah_multivalue` and `niah_multiquery`
  is the user's books (theirs is downloaded), cut into sentences by punctuation, and repeated where it is too
  short;
- every task and length has a random stream of its own; theirs share one, so that only the first task and
  length of a run with their default seed has the same prompts;
- a sample that cannot be made to fit is refused; theirs skips it or never ends;
- theirs does not count the beginning of the answer, and for frequent words not even the answer: where that
  would pass the model's target length, `evaluate_ruler` makes the samples shorter, where theirs cuts off the
  start.
"""

from megatron_longrope2.evaluation.ruler.run import RulerResult, evaluate_ruler
from megatron_longrope2.evaluation.ruler.tasks import (
    BOOK_TASKS,
    TASKS,
    RulerSample,
    check_tokenizer,
    ruler_samples,
    score_answer,
)

__all__ = [
    "BOOK_TASKS",
    "TASKS",
    "RulerResult",
    "RulerSample",
    "check_tokenizer",
    "evaluate_ruler",
    "ruler_samples",
    "score_answer",
]
