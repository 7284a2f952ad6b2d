"""Do two checkpoints, Hugging Face or Megatron, hold the same model?"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_longrope2.checkpoint.conversion import open_checkpoint
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.hf_files import HFTensors
from megatron_longrope2.checkpoint.mapping import TensorSpec
from megatron_longrope2.checkpoint.settings import VerifySettings
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.scoring.samples import Sample
from megatron_longrope2.scoring.scorer import Scorer
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
    """Run both models, one after the other, on the same random tokens; under torchrun every process calls it.

    The predictions of the second and of the last token of each sequence are compared, and others evenly
    spaced between them.

    Args:
        one, other: checkpoints of either kind, of models without `differences`.
        settings: which sequences, and how Megatron models are run.

    Returns:
        For each sequence its `length`, the `largest` and the `mean` of the absolute differences, the standard
        deviation of the first model's logits (`scale`), and the share of the compared positions where both
        find the same token most likely (`same_prediction`).

    Raises:
        InputError: a checkpoint cannot be read, or as `load_model`.
    """
    structure = read_structure(one)
    dims, factors = structure.config.dims(), structure.factors
    original = factors.original_length if factors else dims.original_length
    lengths = settings.lengths or ((original, 2 * original) if factors else (original,))
    generator = torch.Generator().manual_seed(settings.seed)
    samples = []
    for length in lengths:
        mask = torch.zeros(length, dtype=torch.bool)
        mask[torch.linspace(1, length - 1, min(settings.positions, length - 1)).round().long()] = True
        samples.append(Sample(torch.randint(dims.vocab_size, (length,), generator=generator), mask))
    left, right = (_logits(folder, samples, settings.layout) for folder in (one, other))
    return [
        _difference(length, *(logits[:, : dims.vocab_size] for logits in pair))
        for length, *pair in zip(lengths, left, right, strict=True)
    ]


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


def _logits(folder: Path, samples: list[Sample], layout: LayoutSettings) -> list[Tensor]:
    hugging_face = (folder / "config.json").exists()
    scorer = (_hf_scorer if hugging_face else _megatron_scorer)(folder, layout)
    return scorer.logits(samples, description=f"logits of {folder.name}")


def _hf_scorer(folder: Path, layout: LayoutSettings) -> Scorer:
    from transformers import AutoModelForCausalLM

    from megatron_longrope2.scoring.hugging_face import HFScorer

    dtype = torch.bfloat16 if layout.bf16 else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFScorer(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device))


def _megatron_scorer(folder: Path, layout: LayoutSettings) -> Scorer:
    from megatron_longrope2.model.loading import load_model, unload_model
    from megatron_longrope2.scoring.megatron import MegatronScorer

    unload_model()
    return MegatronScorer(load_model(folder, layout), restrict_last_layer=False)
