"""Do two checkpoints, Hugging Face or Megatron, hold the same model?"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.export_hf import open_checkpoint
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.hf_files import HFTensors, TensorSpec
from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import RopeFactors


@dataclass(frozen=True)
class Structure:
    """A model without its weights."""

    kind: str
    """"Hugging Face" or "Megatron"."""
    config: HFConfig
    specs: dict[str, TensorSpec]
    """Hugging Face name to shape and dtype, whichever kind it is."""
    factors: RopeFactors | None


def read_structure(folder: str | Path, base_dir: str | Path | None = None) -> Structure:
    """What a checkpoint holds, without reading weights.

    Args:
        folder: a Hugging Face model folder, or what Megatron's `--load` names.
        base_dir: for a Megatron checkpoint, as in `export_hf`.

    Raises:
        InputError: it is neither, or damaged.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        config = HFConfig.read(folder)
        specs = dict(HFTensors(folder).specs)
        if config.tied:
            specs.pop("lm_head.weight", None)
        return Structure("Hugging Face", config, specs, config.factors())
    source = open_checkpoint(folder, base_dir)
    return Structure("Megatron", source.config, {spec.name: spec for spec in source.specs()}, source.factors)


def differences(one: Structure, other: Structure) -> list[str]:
    """What is not the same, a line each; none where the two are the same model but for the numbers.

    Dtypes may differ: logits are compared in float32.
    """
    found = [f"{name}: only in the first" for name in sorted(one.specs.keys() - other.specs.keys())]
    found += [f"{name}: only in the second" for name in sorted(other.specs.keys() - one.specs.keys())]
    for name in sorted(one.specs.keys() & other.specs.keys()):
        shapes = one.specs[name].shape, other.specs[name].shape
        if shapes[0] != shapes[1]:
            found.append(f"{name}: shape {list(shapes[0])} in the first, {list(shapes[1])} in the second")
    for field in ("rms_norm_eps", "hidden_act", "num_attention_heads"):
        left, right = (structure.config.full.get(field) for structure in (one, other))
        if left != right:
            found.append(f"{field}: {left} in the first, {right} in the second")
    if one.config.rope.rope_base != other.config.rope.rope_base:
        found.append(f"rope_theta: {one.config.rope.rope_base:g}, {other.config.rope.rope_base:g}")
    return found + _rope_differences(one.factors, other.factors)


def _rope_differences(one: RopeFactors | None, other: RopeFactors | None) -> list[str]:
    if one is None and other is None:
        return []
    if one is None or other is None:
        which = "first" if one is None else "second"
        return [f"RoPE: plain in the {which}, rescaled in the other"]
    return [
        f"RoPE: {field} differs"
        for field in ("original_length", "target_length", "short_factor", "long_factor", "attention_factor")
        if getattr(one, field) != getattr(other, field)
    ]


@dataclass(frozen=True)
class LogitDifference:
    """How far two models' logits are apart on one sequence."""

    length: int
    largest: float
    mean: float
    scale: float
    """Standard deviation of the first model's logits."""
    same_prediction: float
    """Share of the compared positions where both find the same token most likely."""


def compare_logits(
    one: str | Path, other: str | Path, lengths: list[int], *, positions: int = 64, seed: int = 0
) -> list[LogitDifference]:
    """Run both models in float32, one after the other, on the same random tokens.

    Args:
        one, other: checkpoints of either kind.
        lengths: of the sequences, tokens.
        positions: how many positions of each sequence are compared: the last, and others evenly spaced.
        seed: of the tokens.

    Raises:
        InputError: a checkpoint cannot be read, or the vocabularies differ.
    """
    sizes = [int(read_structure(folder).config.full["vocab_size"]) for folder in (one, other)]
    if sizes[0] != sizes[1]:
        raise InputError(f"{other}: vocab_size: {sizes[1]} is not the {sizes[0]} of {one}")
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(sizes[0], (1, length), generator=generator) for length in lengths]
    left, right = (_logits(folder, tokens, sizes[0], positions) for folder in (one, other))
    return [_difference(length, *pair) for length, *pair in zip(lengths, left, right, strict=True)]


def _difference(length: int, left: Tensor, right: Tensor) -> LogitDifference:
    apart = (left - right).abs()
    return LogitDifference(
        length=length,
        largest=float(apart.max()),
        mean=float(apart.mean()),
        scale=float(left.std()),
        same_prediction=float((left.argmax(-1) == right.argmax(-1)).float().mean()),
    )


def _logits(folder: str | Path, tokens: list[Tensor], vocab: int, positions: int) -> list[Tensor]:
    is_hf = (Path(folder) / "config.json").exists()
    with _hf_model(folder) if is_hf else _megatron_model(folder) as run, torch.no_grad():
        found = []
        for row in tqdm(tokens, desc=f"logits of {Path(folder).name}", unit="sequence"):
            kept = torch.linspace(0, row.shape[1] - 1, min(positions, row.shape[1])).round().long()
            found.append(run(row)[0, kept, :vocab].float().cpu())
        return found


@contextmanager
def _hf_model(folder: str | Path) -> Iterator[Any]:
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    yield lambda row: model(row.to(device), use_cache=False).logits


@contextmanager
def _megatron_model(folder: str | Path) -> Iterator[Any]:
    from megatron.training.training import destroy_global_state

    from megatron_longrope2.model.loading import load_model

    # Megatron reports on stdout; a comparison's output is the comparison.
    with redirect_stdout(sys.stderr):
        model = load_model(folder).chunks[0]
    device = next(model.parameters()).device
    try:
        yield lambda row: model(row.to(device), torch.arange(row.shape[1], device=device).unsqueeze(0), None)
    finally:
        # So that the other checkpoint may be Megatron's too.
        destroy_global_state()
        torch.distributed.destroy_process_group()
