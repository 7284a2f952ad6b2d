"""A prompt that is read in chunks gives the logits of the whole prompt, in every implementation."""

from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import python
from tests.gpu.generation_worker import CHUNKS
from tests.gpu.test_implementations import ENGINE, FUSED

# Of the logits' standard deviation; bf16 keeps 8 bits.
TOLERANCE = {"cpu": 1e-4, "cuda": 0.1}


@pytest.fixture(scope="module")
def results(megatron_on: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, torch.Tensor]]:  # noqa: ARG001
    output: Path = tmp_path_factory.mktemp("generation") / "results.pt"
    finished = python("-m", "tests.gpu.generation_worker", output)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-5000:]
    return torch.load(output)


@pytest.mark.parametrize("implementation", ["torch", ENGINE, FUSED])
def test_chunks_give_the_logits_of_the_whole(
    results: dict[str, dict[int, torch.Tensor]], megatron_on: str, implementation: str
) -> None:
    whole, chunked = (results[implementation][chunk] for chunk in CHUNKS)
    reference = results["torch"][CHUNKS[0]]
    for found in (whole, chunked):
        # The first logits of each prompt: later ones follow from tokens that rounding may change.
        difference = (found[:, 0] - reference[:, 0]).abs().max() / reference.std()
        assert difference < TOLERANCE[megatron_on]
