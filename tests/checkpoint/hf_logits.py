"""Run with whichever transformers is first on the path: logits of a model folder, by length, to a file."""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    folder, output, lengths = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {}
    with torch.no_grad():
        for length in lengths:
            generator = torch.Generator().manual_seed(length)
            tokens = torch.randint(model.config.vocab_size, (1, length), generator=generator)
            found[length] = model(tokens).logits
    torch.save({"version": transformers.__version__, "logits": found}, output)
