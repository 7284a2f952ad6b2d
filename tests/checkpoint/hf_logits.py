"""Run with whichever transformers is first on the path: logits of model folders, by length, to a file.

usage: hf_logits.py OUTPUT.pt LENGTHS FOLDER... (LENGTHS is a JSON list)
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM


def logits(folder: str, lengths: list[int]) -> dict[int, torch.Tensor]:
    """Logits on random tokens, the same for all models of one vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {}
    with torch.no_grad():
        for length in lengths:
            generator = torch.Generator().manual_seed(length)
            tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator)
            found[length] = model(tokens).logits
    return found


if __name__ == "__main__":
    output, lengths, *folders = sys.argv[1:]
    found = {folder: logits(folder, json.loads(lengths)) for folder in folders}
    torch.save({"version": transformers.__version__, "logits": found}, output)
