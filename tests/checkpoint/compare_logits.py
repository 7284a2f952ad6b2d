"""Run in a process of its own: logits of Megatron models against transformers', for pairs of folders."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

from megatron_longrope2 import device

device.install()

from megatron.training.training import destroy_global_state

from megatron_longrope2.model.loading import load_model


def largest_differences(megatron_dir: str, hf_dir: str, lengths: list[int]) -> dict[int, float]:
    """Largest absolute logit difference at each length, tokens; both models in float32."""
    megatron = load_model(megatron_dir)
    hf = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()
    vocab = hf.config.vocab_size
    worst = {}
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        tokens = torch.randint(vocab, (1, length), generator=generator)
        with torch.no_grad():
            ours = megatron.chunks[0](tokens, torch.arange(length)[None], None)[..., :vocab]
            theirs = hf(tokens).logits
        # On the scale of the logits themselves: a difference of 1e-4 must mean something.
        assert 0.1 < float(theirs.std()) < 100
        worst[length] = float((ours - theirs).abs().max())
    return worst


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    del sys.argv[1:]
    answer = []
    for megatron_dir, hf_dir in request["pairs"]:
        answer.append(largest_differences(megatron_dir, hf_dir, request["lengths"]))
        destroy_global_state()
        torch.distributed.destroy_process_group()
    print("ANSWER" + json.dumps(answer))
