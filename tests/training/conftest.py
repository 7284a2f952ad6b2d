"""Megatron is imported by these tests, in this process; every parse leaves its global variables behind."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_longrope2 import device

device.install()

from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.training.global_vars import destroy_global_vars

from megatron_longrope2.data.pools import write_documents
from megatron_longrope2.rope import make_factors
from megatron_longrope2.training.arguments import parse_training_arguments

ORIGINAL, TARGET, VOCAB = 64, 256, 256
OPTIONS = f"""
    --num-layers 2 --hidden-size 32 --num-attention-heads 2 --kv-channels 16 --ffn-hidden-size 48 --swiglu
    --normalization RMSNorm --disable-bias-linear --position-embedding-type rope --rotary-base 10000
    --max-position-embeddings {ORIGINAL} --seq-length {TARGET} --vocab-size {VOCAB}
    --make-vocab-size-divisible-by 64 --tokenizer-type NullTokenizer --init-method-std 0.2
    --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 1 --global-batch-size 8 --lr 1e-3
    --train-iters 6 --ckpt-format torch_dist
""".split()

Parse = Callable[..., Namespace]


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pools `short` and `long` and `factors.json`."""
    folder = tmp_path_factory.mktemp("pools")
    rng = np.random.default_rng(0)
    # Multiples of 4: no layout of two processes needs padding, so that all see the same packs.
    for pool, lengths in (("short", range(16, ORIGINAL + 1, 4)), ("long", range(ORIGINAL + 4, 401, 4))):
        documents = (rng.integers(0, VOCAB, rng.choice(lengths)) for _ in range(200))
        write_documents(folder / pool, documents, vocab_size=VOCAB)
    factors = make_factors(
        "yarn",
        rope_base=10000.0,
        rotary_dim=16,
        original_length=ORIGINAL,
        target_length=TARGET,
        attention_factor=True,
    )
    factors.save(folder / "factors.json")
    return folder


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parse]:
    """Parse a small model's options and more, once a test."""

    def parse_(*options: object) -> Namespace:
        monkeypatch.setattr(sys, "argv", ["pretrain", *OPTIONS, *map(str, options)])
        return parse_training_arguments()

    yield parse_
    destroy_global_vars()
    destroy_num_microbatches_calculator()
