"""Generation after prompts of both windows in one layout, as JSON: FOLDER OUTPUT TP PP."""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device

device.install()

import torch

from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.generation import Sampling, generate
from megatron_longrope2.model.loading import load_model
from tests.evaluation.tiny_llama import prompts


def refusal(**changes: object) -> str:
    try:
        generate(**changes)  # type: ignore[arg-type]
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    tp, pp = map(int, sys.argv[3:5])
    model = load_model(folder / "megatron", tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    rows = generate(model, prompts(), 12, return_logits=True)
    stop = rows[1].tokens[3]
    sampling = Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=3)
    sampled = generate(model, prompts(), 12, sampling=sampling)
    results = {
        "tokens": [row.tokens for row in rows],
        "logits": [row.logits.tolist() for row in rows] if rows[0].logits is not None else None,
        "stopped": generate(model, prompts()[1:2], 12, stop_token=stop)[0].tokens,
        "sampled": [row.tokens for row in sampled],
        "sampled_alone": generate(model, prompts()[:1], 12, sampling=sampling)[0].tokens,
        "too_long": refusal(model=model, prompts=[[1] * 250], max_new_tokens=7),
        "empty": refusal(model=model, prompts=[[1], []], max_new_tokens=7),
    }
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
