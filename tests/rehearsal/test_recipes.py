"""The recipes at their true sizes, on tensors without memory."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope2.planning.settings import PRESETS
from tests.processes import ROOT, longrope2
from tests.shell import commands, verb

TARGET = 131072
CONTEXT_PARALLEL = {"llama3-8b": 8, "phi3-mini": 4}


def phi3_mini(folder: Path) -> list[str]:
    """The recipe's command for training, as srun starts it."""
    places = {"RUN": "run", "MODEL": "model", "TEXT": "text", "BOOKS": "books"}
    started = commands("examples/phi3_mini/4_train.sh", folder, **places)
    (words,) = [words for one in started if (words := verb(one))]
    return ["--model", "phi3-mini", "--command", *words]


@pytest.fixture(scope="module", params=["llama3-8b", "phi3-mini"])
def rehearsed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rehearsed")
    # The other stages score needles and texts in one forward pass: less than training, and no cache.
    example = (ROOT / "slurm/example.toml").read_text()
    (folder / "chain.toml").write_text(
        re.sub(r'^    "(needle|perplexity).*\n', "", example, flags=re.MULTILINE)
    )
    words = [folder / "chain.toml", "--model", "llama3-8b", "--stages", "train", "evaluate"]
    if request.param == "phi3-mini":
        words = phi3_mini(folder / "shell")
    done = longrope2("rehearse", "--output", folder / "found.json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("fits: ")
    found = json.loads((folder / "found.json").read_text())
    return {**found, "model": PRESETS[request.param]}


def test_fits_in_every_stage(rehearsed: dict[str, Any]) -> None:
    stages = {rank["stage"] for rank in rehearsed["ranks"]}
    if rehearsed["model"].name == "llama3-8b":
        assert stages == {"train", "evaluate ruler"}
    for rank in rehearsed["ranks"]:
        assert rank["peak"] == sum(rank["categories"].values())
        assert rank["peak"] < 0.9 * 80 * 2**30
        needed = {"weights"} | ({"gradients", "optimizer states"} if rank["stage"] == "train" else set())
        assert needed <= rank["categories"].keys()
    assert any("keys and values" in rank["categories"] for rank in rehearsed["ranks"]) == (
        "evaluate ruler" in stages
    )


def test_no_layer_reads_a_number_back(rehearsed: dict[str, Any]) -> None:
    for rank in rehearsed["ranks"]:
        assert not [entry for entry in rank["read_backs"] if entry["in_layer"]]


def test_a_layer_costs_the_same_whatever_the_number_of_documents(rehearsed: dict[str, Any]) -> None:
    for rank in rehearsed["ranks"]:
        if rank["stage"] == "train":
            fewest, most = rank["launches"]
            assert 20 < fewest <= most <= fewest + 2


def test_no_tensor_of_tokens_by_tokens_or_by_vocabulary(rehearsed: dict[str, Any]) -> None:
    model = rehearsed["model"]
    for rank in rehearsed["ranks"]:
        # Training divides the tokens among the context-parallel ranks; the other stages do not.
        tokens = TARGET // (CONTEXT_PARALLEL[model.name] if rank["stage"] == "train" else 1)
        assert 0 < rank["largest_tensor"] < tokens * min(model.vocab_size, TARGET)
