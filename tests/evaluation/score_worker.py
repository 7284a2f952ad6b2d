"""Scores of all measurements on the Megatron model in one layout, as JSON: FOLDER OUTPUT TP PP CP."""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device

device.install()

import torch

from megatron_longrope2.evaluation.megatron_scorer import MegatronScorer
from megatron_longrope2.model.loading import load_model
from megatron_longrope2.rope import make_factors
from tests.evaluation.measure import measure_all
from tests.evaluation.tiny_llama import factors


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    tp, pp, cp = map(int, sys.argv[3:6])
    model = load_model(
        folder / "megatron",
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=cp,
        extra_arguments=("--sequence-parallel",) if tp > 1 else (),
    )
    scorer = MegatronScorer(model)
    results = {"given": measure_all(scorer, model.tokenizer(), folder / "books")}
    shape = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": 64, "target_length": 256}
    model.set_factors(make_factors("none", **shape))
    results["none"] = measure_all(scorer, model.tokenizer(), folder / "books")
    model.set_factors(factors())
    results["again"] = measure_all(scorer, model.tokenizer(), folder / "books")
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
