"""Do two checkpoints, Hugging Face or Megatron, hold the same model?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.conversion import open_checkpoint
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.hf_files import HFTensors
from megatron_longrope2.checkpoint.mapping import TensorSpec
from megatron_longrope2.checkpoint.settings import VerifySettings
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.tables import text_table


@dataclass(frozen=True)
class Structure:
    """A model without its weights.

    Attributes:
        kind: "Hugging Face" or "Megatron".
        specs: Hugging Face name to shape and dtype, whichever kind it is.
        factors: the rescaling of its RoPE; None where it is plain.
    """

    kind: str
    config: HFConfig
    specs: dict[str, TensorSpec]
    factors: RopeFactors | None


def read_structure(folder: str | Path) -> Structure:
    """What a checkpoint holds, without reading weights.

    Args:
        folder: a Hugging Face model folder, or what Megatron's `--load` names.

    Raises:
        InputError: it is neither, or damaged.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        config = HFConfig.read(folder)
        specs = HFTensors(folder).specs
        if config.tied:
            specs.pop("lm_head.weight", None)
        return Structure("Hugging Face", config, specs, config.rope.factors)
    source = open_checkpoint(folder)
    return Structure("Megatron", source.config, {spec.name: spec for spec in source.specs()}, source.factors)


def differences(one: Structure, other: Structure) -> list[str]:
    """What is not the same, a line each; none where the two are the same model but for the numbers.

    Dtypes may differ: logits are compared in float32.
    """
    found = []
    left, right = _described(one), _described(other)
    for name in sorted(left.keys() | right.keys()):
        if name not in right or name not in left:
            found.append(f"{name}: only in the {'first' if name in left else 'second'}")
        elif left[name] != right[name]:
            found.append(f"{name}: {left[name]} in the first, {right[name]} in the second")
    if one.factors is not None and other.factors is not None:
        found += [f"RoPE: {text}" for text in one.factors.differences(other.factors)]
    return found


def _described(structure: Structure) -> dict[str, object]:
    return {
        **{name: f"shape {list(spec.shape)}" for name, spec in structure.specs.items()},
        **{name: structure.config.full.get(name) for name in ("rms_norm_eps", "num_attention_heads")},
        "rope_theta": structure.config.rope.rope_base,
        "RoPE": "rescaled" if structure.factors else "plain",
    }


def compare_logits(one: Path, other: Path, settings: VerifySettings) -> list[dict[str, float]]:
    """Run both models in float32, one after the other, on the same random tokens.

    The last position of each sequence is compared, and others evenly spaced.

    Args:
        one, other: checkpoints of either kind, of models without `differences`.
        settings: which sequences.

    Returns:
        For each sequence its `length`, the `largest` and the `mean` of the absolute differences, the standard
        deviation of the first model's logits (`scale`), and the share of the compared positions where both
        find the same token most likely (`same_prediction`).

    Raises:
        InputError: a checkpoint cannot be read.
    """
    structure = read_structure(one)
    dims, factors = structure.config.dims(), structure.factors
    original = factors.original_length if factors else dims.original_length
    lengths = settings.lengths or ((original, 2 * original) if factors else (original,))
    generator = torch.Generator().manual_seed(settings.seed)
    tokens = [torch.randint(dims.vocab_size, (1, length), generator=generator) for length in lengths]
    left, right = (_logits(folder, tokens, dims.vocab_size, settings.positions) for folder in (one, other))
    return [_difference(length, *pair) for length, *pair in zip(lengths, left, right, strict=True)]


def logit_table(rows: list[dict[str, float]]) -> str:
    """The differences, one sequence a line."""
    cells = [
        (
            row["length"],
            *(f"{row[name]:.2e}" for name in ("largest", "mean", "scale")),
            f"{row['same_prediction']:.1%}",
        )
        for row in rows
    ]
    return text_table(("length", "largest", "mean", "logit std", "same prediction"), cells, left=0)


def _difference(length: int, left: Tensor, right: Tensor) -> dict[str, float]:
    apart = (left - right).abs()
    return {
        "length": length,
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        "scale": float(left.std()),
        "same_prediction": float((left.argmax(-1) == right.argmax(-1)).float().mean()),
    }


@torch.no_grad()
def _logits(folder: Path, tokens: list[Tensor], vocab: int, positions: int) -> list[Tensor]:
    run = _hf_model(folder) if (folder / "config.json").exists() else _megatron_model(folder)
    found = []
    for row in tqdm(tokens, desc=f"logits of {folder.name}", unit="sequence"):
        kept = torch.linspace(0, row.shape[1] - 1, min(positions, row.shape[1])).round().long()
        found.append(run(row)[0, kept, :vocab].float().cpu())
    return found


def _hf_model(folder: Path) -> Callable[[Tensor], Tensor]:
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return lambda row: model(row.to(device), use_cache=False).logits


def _megatron_model(folder: Path) -> Callable[[Tensor], Tensor]:
    from megatron_longrope2.model.loading import load_model, unload_model

    unload_model()
    model = load_model(folder).chunks[0]
    device = next(model.parameters()).device
    return lambda row: model(row.to(device), torch.arange(row.shape[1], device=device).unsqueeze(0), None)
