"""All measurements and generation on the Megatron model in one layout, as JSON: FOLDER OUTPUT TP PP CP."""

import json
import sys
from pathlib import Path
from typing import Any

from megatron_longrope2 import device

device.install()

import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.generation import generate, greedy, sampling
from megatron_longrope2.evaluation.megatron_lm import MegatronLM
from megatron_longrope2.evaluation.settings import CheckpointSettings, GenerationSettings
from megatron_longrope2.evaluation.subject import open_subject
from megatron_longrope2.model.loading import LoadedModel, load_model
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.rope import make_factors
from megatron_longrope2.scoring.megatron import MegatronScorer
from tests.evaluation.harness_tasks import TASKS, ruler, run_tasks, small_harness
from tests.evaluation.measure import measure_all
from tests.evaluation.tiny_llama import TARGET, factors, prompts


def scores(model: LoadedModel, books: Path) -> dict[str, Any]:
    """With the checkpoint's factors, with none, and with the checkpoint's again."""
    scorer = MegatronScorer(model)
    results = {"given": measure_all(scorer, model.tokenizer(), books)}
    shape = {"rope_base": 10000.0, "rotary_dim": 16, "original_length": 64, "target_length": 256}
    for name, used in (("none", make_factors("none", **shape)), ("again", factors())):
        model.set_factors(used)
        results[name] = measure_all(scorer, model.tokenizer(), books)
    return results


def generation(model: LoadedModel) -> dict[str, Any]:
    steps: list[list[list[float]]] = []

    def recorded(logits: torch.Tensor) -> torch.Tensor:
        steps.append(logits.tolist())
        return greedy(logits)

    whole, chunks = GenerationSettings(batch_size=1), GenerationSettings(batch_size=1, prefill_chunk=7)
    rows = generate(model, prompts(), 12, choose=recorded, settings=whole)
    logits = [steps[start : start + 12] for start in range(0, len(steps), 12)]
    steps.clear()
    results = {
        "tokens": rows,
        "logits": logits,
        "chunked": generate(model, prompts(), 12, choose=recorded, settings=chunks),
        "chunked_logits": [steps[start : start + 12] for start in range(0, len(steps), 12)],
        "sampled": generate(model, prompts(), 8, choose=sampling(1.0, top_k=50, top_p=0.9)),
    }
    if torch.distributed.get_world_size() > 1:
        return results
    stop = rows[1][3]
    return {
        **results,
        "together": generate(model, prompts(), 12),
        "stopped": generate(model, prompts()[1:2], 12, finished=lambda new: new[-1] == stop)[0],
        "top_1": generate(model, prompts(), 8, choose=sampling(0.7, top_k=1)),
        "too_long": refusal(model, [[1] * 250]),
        "empty": refusal(model, [[1], []]),
    }


def refusal(model: LoadedModel, given: list[list[int]]) -> str:
    try:
        generate(model, given, 7)
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    tp, pp, cp = map(int, sys.argv[3:6])
    model = load_model(
        folder / "megatron",
        LayoutSettings(
            tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=cp
        ),
        sequence_parallel=cp > 1,
    )
    results: dict[str, Any] = {"scores": scores(model, folder / "books")}
    results["generation"] = generation(model) if cp == 1 else refusal(model, [[1]])
    with small_harness():
        tasks = TASKS if cp == 1 else TASKS[:2]
        results["tasks"] = run_tasks(MegatronLM(model, model.tokenizer(), TARGET), folder / "tasks", tasks)
        if cp == 1:
            checkpoint = CheckpointSettings(load=folder / "megatron", rope_factors=str(folder / "long.json"))
            layout = LayoutSettings(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
            results["ruler"] = ruler(open_subject(checkpoint, layout), "ruler_fwe")
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
