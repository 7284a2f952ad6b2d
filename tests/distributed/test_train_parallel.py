"""Training in every parallel layout equals one process: losses and every parameter's gradient."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_longrope2.data.pools import write_documents
from megatron_longrope2.rope import make_factors
from tests.processes import torchrun

WORKER = Path(__file__).with_name("train_worker.py")
ORIGINAL, TARGET, VOCAB = 64, 256, 256

# Each is run with whole-segment long windows, and with two segments of documents of both windows in one pack.
DATA = {
    "full": [],
    "document": ["--long-window-attention", "document", "--micro-batch-size", "2"],
}
PARALLEL = {
    2: {
        "TP2": ["--tensor-model-parallel-size", "2"],
        "TP2 SP": ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
        "PP2": ["--pipeline-model-parallel-size", "2"],
        "PP2 interleaved": [
            *("--pipeline-model-parallel-size", "2"),
            *("--num-layers-per-virtual-pipeline-stage", "1"),
        ],
        "CP2": ["--context-parallel-size", "2"],
        "DP2": [],
        "DP2 recompute MLPs": ["--recompute-granularity", "selective", "--recompute-modules", "mlp"],
        "CP2 recompute": [
            *("--context-parallel-size", "2", "--recompute-granularity", "full"),
            *("--recompute-method", "uniform", "--recompute-num-layers", "1"),
        ],
    },
    4: {
        "TP2 SP CP2": [
            *("--tensor-model-parallel-size", "2", "--sequence-parallel"),
            *("--context-parallel-size", "2"),
        ],
        "PP2 CP2": ["--pipeline-model-parallel-size", "2", "--context-parallel-size", "2"],
        "CP4": ["--context-parallel-size", "4"],
    },
}


def layouts(processes: int) -> dict[str, list[str]]:
    parallel = PARALLEL.get(processes, {"one": []})
    return {f"{name}, {data}": [*DATA[data], *parallel[name]] for name in parallel for data in DATA}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Megatron arguments: a small GQA model, its checkpoint, two pools, factors with an attention factor."""
    folder = tmp_path_factory.mktemp("layouts")
    rng = np.random.default_rng(0)
    # Multiples of 16: no layout needs padding, so that all see the same packs.
    for pool, lengths in (("short", range(16, ORIGINAL + 1, 16)), ("long", range(80, 401, 16))):
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
    options = f"""
        --num-layers 4 --hidden-size 64 --num-attention-heads 4 --kv-channels 16 --group-query-attention
        --num-query-groups 2 --ffn-hidden-size 96 --swiglu --normalization RMSNorm --disable-bias-linear
        --position-embedding-type rope --rotary-base 10000 --max-position-embeddings {ORIGINAL}
        --seq-length {TARGET} --vocab-size {VOCAB} --make-vocab-size-divisible-by 64
        --tokenizer-type NullTokenizer --init-method-std 0.2 --no-check-for-nan-in-loss-and-grad
        --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 1 --global-batch-size 8 --train-iters 1
        --lr 1e-3 --ckpt-format torch_dist --rope-factors {folder}/factors.json
        --pool short 1 {folder}/short --pool long 1 {folder}/long
    """.split()
    checkpoint = folder / "checkpoint"
    torchrun(1, "-m", "megatron_longrope2", "train", *options, "--save", checkpoint, "--save-interval", "1")
    return [*options, "--load", str(checkpoint), "--finetune", "--no-load-optim"]


def results(processes: int, arguments: list[str], folder: Path) -> dict[str, dict]:
    (folder / "layouts.json").write_text(json.dumps(layouts(processes)))
    torchrun(processes, WORKER, folder / "layouts.json", folder / "results.pt", *arguments)
    return torch.load(folder / "results.pt")


@pytest.fixture(scope="module")
def one_process(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return results(1, arguments, tmp_path_factory.mktemp("one"))


def test_both_windows_are_in_the_batch(one_process: dict[str, dict]) -> None:
    for result in one_process.values():
        assert result["losses"]["short window loss"] > 1
        assert result["losses"]["long window loss"] > 1


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_gradients_equal_one_process(
    processes: int, arguments: list[str], one_process: dict[str, dict], tmp_path: Path
) -> None:
    for name, result in results(processes, arguments, tmp_path).items():
        expected = one_process[f"one, {name.rpartition(', ')[2]}"]
        assert result["losses"].keys() == expected["losses"].keys()
        for loss, value in expected["losses"].items():
            assert result["losses"][loss] == pytest.approx(value, rel=1e-5), f"{name}: {loss}"
        assert result["gradients"].keys() == expected["gradients"].keys(), name
        for parameter, gradient in expected["gradients"].items():
            error = (result["gradients"][parameter] - gradient).norm() / gradient.norm()
            assert error < 1e-5, f"{name}: {parameter}: relative error {error:.1e}"
