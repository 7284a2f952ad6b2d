"""What a Hugging Face model folder holds besides weights: tokenizer, generation config, model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_longrope2 import __version__
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.files import read_json, write_json
from megatron_longrope2.rope import RopeFactors

TOKENIZER = "tokenizer"
"""Folder in a Megatron checkpoint that holds everything of the Hugging Face folder but the weights."""

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
_SIDE_FILES = ("config.json", "generation_config.json", *_TOKENIZER_FILES, "LICENSE*", "NOTICE*")
_TOKENIZER_CONFIG = "tokenizer_config.json"


def copy_side_files(source: Path, target: Path) -> None:
    """Copy everything but weights of a Hugging Face folder into a new folder."""
    target.mkdir()
    for pattern in _SIDE_FILES:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def write_side_files(
    base: Path, target: Path, config: dict[str, Any], factors: RopeFactors | None, tensors: MegatronTensors
) -> None:
    """Begin a Hugging Face folder: config, tokenizer, model card, factor file.

    Args:
        base: folder with the tokenizer that training used.
        target: new folder.
        config: its config.json.
        factors: described in the card; None where the RoPE is not rescaled.
        tensors: the checkpoint that is exported, for the card.
    """
    copy_side_files(base, target)
    write_json(target / "config.json", config)
    length = int(config["max_position_embeddings"])
    if (target / _TOKENIZER_CONFIG).exists():
        tokenizer = read_json(target / _TOKENIZER_CONFIG)
        # vLLM caps its context at this.
        if tokenizer.get("model_max_length", length) < length:
            write_json(target / _TOKENIZER_CONFIG, tokenizer | {"model_max_length": length})
    if factors is not None:
        factors.save(target / "factors.json")
    (target / "README.md").write_text(_card(config, factors, tensors), encoding="utf-8")


def _card(config: dict[str, Any], factors: RopeFactors | None, tensors: MegatronTensors) -> str:
    checkpoint = f"{tensors.folder.parent.name}/{tensors.folder.name}"
    paragraphs = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {config['architectures'][0] if config.get('architectures') else config['model_type']}",
        f"Exported by megatron-longrope2 {__version__} from a Megatron checkpoint (`{checkpoint}`, "
        f"{tensors.iteration} training iterations).",
        *([] if factors is None else _rope_section(factors)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _rope_section(factors: RopeFactors) -> list[str]:
    original, attention = factors.original_length, factors.attention_factor
    return [
        "## Context window",
        f"Extended from {original} to {factors.target_length} tokens ({factors.scale:g} times) with RoPE "
        f"factors from `{factors.method}`; they are in `config.json` (rope type `longrope`) and "
        f"`factors.json`. Up to {original} tokens the angles are the original model's. The attention factor "
        f"is {attention.short:g} in the short window and {attention.long:g} in the long one.",
        "Readers choose between the windows as follows:",
        "- transformers changes to the long factors when the longest position of a forward call passes "
        f"{original}. A cached generation that crosses it keeps keys of the short factors: start again with "
        "an empty cache and the whole text when it crosses.\n"
        f"- vLLM chooses once: short factors with `--max-model-len {original}` or less, long ones above, for "
        "short prompts too.",
        "## Provenance",
        f"```json\n{json.dumps(factors.provenance, indent=2)}\n```",
    ]
