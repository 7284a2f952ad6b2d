"""A converted checkpoint trains without shape flags, and what training saves is exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_longrope2.checkpoint.conversion import export_hf, import_hf
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from megatron_longrope2.data.pools import write_documents
from tests.checkpoint.test_parity import TOLERANCE, differences
from tests.checkpoint.test_round_trip import longrope2_factors, weights
from tests.checkpoint.tiny_models import ORIGINAL, TARGET, VOCAB, save_model
from tests.processes import torchrun


@pytest.mark.slow
def test_checkpoint_of_a_run_with_optimizer_state_is_exported(tmp_path: Path) -> None:
    factors = longrope2_factors(tmp_path)
    hf = save_model(tmp_path / "hf", tie_word_embeddings=True, dtype=torch.bfloat16)
    import_hf(ImportSettings(hf, tmp_path / "megatron", rope_factors=tmp_path / "factors.json"))
    rng = np.random.default_rng(0)
    documents = (rng.integers(0, VOCAB, int(length)) for length in rng.integers(ORIGINAL + 1, 400, 100))
    write_documents(tmp_path / "pool", documents, vocab_size=VOCAB)
    torchrun(
        2,
        *("-m", "megatron_longrope2", "train", "--use-distributed-optimizer", "--bf16"),
        *("--pretrained-checkpoint", tmp_path / "megatron", "--save", tmp_path / "trained"),
        *("--pool", "long", 1, tmp_path / "pool", "--seq-length", TARGET, "--train-iters", 2, "--lr", "1e-2"),
        *(
            "--micro-batch-size",
            1,
            "--global-batch-size",
            4,
            "--save-interval",
            2,
            "--ckpt-format",
            "torch_dist",
        ),
    )
    saved = MegatronTensors(tmp_path / "trained")
    assert saved.iteration == 2
    assert any("exp_avg" in str(key) for key in saved.metadata.state_dict_metadata)
    export_hf(ExportSettings(tmp_path / "trained", tmp_path / "back"))
    before, after = weights(hf), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(after) / 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.config.rope_parameters["long_factor"] == list(factors.long_factor)
    found = differences({"trained": (tmp_path / "trained", tmp_path / "back")}, [ORIGINAL, TARGET])
    assert found["trained"] < TOLERANCE
