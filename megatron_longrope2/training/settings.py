"""The options that `longrope2 train` adds to Megatron's. Imports no Megatron."""

from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_longrope2.options import options

_POOL: dict[str, Any] = {
    "argparse_meta": {"nargs": 3, "action": "append", "metavar": ("WINDOW", "WEIGHT", "PREFIX")}
}


@options("Mixed context window training")
@dataclass(frozen=True)
class MixedWindowSettings:
    """Mixed context window training.

    Attributes:
        pool: Training documents, as WINDOW WEIGHT PREFIX: their window (short or long), their share of the
            segments (a whole number, compared with the other pools' weights), and the path of their .bin and
            .idx files without the suffix. The option may be repeated.
        mix: The mix.json that `longrope2 preprocess --mix` wrote: all its pools with their shares. It may be
            combined with --pool.
        valid_pool: Validation documents, given like those of --pool. The option may be repeated.
        long_window_attention: What the attention of a long segment spans: the full segment, as in the paper,
            or each document of it, as in the authors' code.
        single_window: Conventional mid-training, the paper's ablation without mixed windows (Table 7): the
            rescaled RoPE on everything, and --long-window-attention in training segments of short documents
            too, so that by default no document is masked from another.
        repeat_data: Read a pool again, in another order, when the run needs more segments than it has.
    """

    pool: list[list[str]] = field(default_factory=list, metadata=_POOL)
    mix: str | None = None
    valid_pool: list[list[str]] = field(default_factory=list, metadata=_POOL)
    long_window_attention: Literal["full", "document"] = "full"
    single_window: bool = False
    repeat_data: bool = False


@options("Factors learned in training")
@dataclass(frozen=True)
class FactorTrainingSettings:
    """Factors learned in training.

    Attributes:
        train_rope_factors: Learn the long window's factors together with the weights. The checkpoints, and
            what is exported from them, hold the learned factors.
        rope_factors_lr: The learning rate of the factors (Adam), which falls along a cosine to 5 % of it by
            the end of the run.
    """

    train_rope_factors: bool = False
    rope_factors_lr: float = 1e-3
