"""A toy objective without a model, and a tiny model for those who need one."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longrope2.rope import make_factors
from megatron_longrope2.search.space import Individual, SearchSpace

Loss = Callable[[Individual, int], float]


def space_of(base: float, dim: int, original: int, target: int, *options: str) -> SearchSpace:
    """The space of a model with this RoPE."""
    facts = {"rope_base": base, "rotary_dim": dim, "original_length": original, "target_length": target}
    return SearchSpace(make_factors("none", **facts), *options)


def demo_space(*options: str) -> SearchSpace:
    """The demo's geometry: heads of 64, 256 to 2048 tokens; critical dimensions 5 to 13."""
    return space_of(10000.0, 64, 256, 2048, *options)


@pytest.fixture
def tiny_space() -> SearchSpace:
    """`demo_space`, of the paper's kind."""
    return demo_space()


@pytest.fixture
def toy_loss() -> Loss:
    """Squared log distance to a hidden vector, weighted anew for each sample; later samples are harder."""

    def loss(individual: Individual, sample: int) -> float:
        total = 0.0
        for i, value in enumerate(individual.long_factor):
            wanted = 8.0 ** (i / 9) if i < 9 else 8.0 + 0.2 * (i - 9)
            total += (1 + math.cos(i * (sample + 1))) * (math.log(value) - math.log(wanted)) ** 2
        return (1 + sample) * total

    return loss


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with books/, hf/ and megatron/ (see tiny_model)."""
    from tests.search.tiny_model import write_books, write_model

    root = tmp_path_factory.mktemp("tiny")
    write_model(root, write_books(root / "books"))
    return root
