"""Do two checkpoints, Hugging Face or Megatron, hold the same model?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.export_hf import open_checkpoint
from megatron_longrope2.checkpoint.hf_config import HFConfig
from megatron_longrope2.checkpoint.hf_files import HFTensors
from megatron_longrope2.checkpoint.mapping import TensorSpec
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.checkpoint.settings import VerifySettings
from megatron_longrope2.errors import InputError
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
    for field in ("rms_norm_eps", "num_attention_heads"):
        left, right = (structure.config.full.get(field) for structure in (one, other))
        if left != right:
            found.append(f"{field}: {left} in the first, {right} in the second")
    bases = one.config.rope.rope_base, other.config.rope.rope_base
    if bases[0] != bases[1]:
        found.append(f"rope_theta: {bases[0]:g} in the first, {bases[1]:g} in the second")
    if one.factors is None or other.factors is None:
        if one.factors is not other.factors:
            which = "first" if one.factors is None else "second"
            found.append(f"RoPE: plain in the {which}, rescaled in the other")
        return found
    return found + [f"RoPE: {text}" for text in one.factors.differences(other.factors)]


def check_factors(factors: RopeFactors, load_dir: str | Path) -> str:
    """Whether a Megatron checkpoint fits the factors; the answer is one line.

    Raises:
        InputError: there is no checkpoint, it is of another model, or it holds other factors.
    """
    args = MegatronTensors(load_dir).args
    rotary_dim = int(args.kv_channels * args.rotary_percent)
    factors.check_model(str(load_dir), rope_base=args.rotary_base, rotary_dim=rotary_dim)
    theirs = getattr(args, "longrope2_factors", None)
    if theirs is None:
        return f"{load_dir}: fits; holds no factors yet"
    source = f"{load_dir}: longrope2_factors"
    if found := factors.differences(RopeFactors.from_dict(theirs, source=source)):
        raise InputError(f"{source}: {'; '.join(found)}: the factors against the checkpoint's")
    return f"{load_dir}: fits; holds these factors"


@dataclass(frozen=True)
class LogitDifference:
    """How far two models' logits are apart on one sequence.

    Attributes:
        length: of the sequence, tokens.
        largest, mean: of the absolute differences.
        scale: standard deviation of the first model's logits.
        same_prediction: share of the compared positions where both find the same token most likely.
    """

    length: int
    largest: float
    mean: float
    scale: float
    same_prediction: float


def compare_logits(one: Path, other: Path, settings: VerifySettings) -> list[LogitDifference]:
    """Run both models in float32, one after the other, on the same random tokens.

    The last position of each sequence is compared, and others evenly spaced.

    Args:
        one, other: checkpoints of either kind.
        settings: which sequences.

    Raises:
        InputError: a checkpoint cannot be read, or the vocabularies differ.
    """
    structure = read_structure(one)
    dims, factors = structure.config.dims(), structure.factors
    vocab, other_vocab = dims.vocab_size, read_structure(other).config.dims().vocab_size
    if vocab != other_vocab:
        raise InputError(f"{other}: vocab_size: {other_vocab} is not the {vocab} of {one}")
    original = factors.original_length if factors else dims.original_length
    lengths = settings.lengths or ((original, 2 * original) if factors else (original,))
    generator = torch.Generator().manual_seed(settings.seed)
    tokens = [torch.randint(vocab, (1, length), generator=generator) for length in lengths]
    left, right = (_logits(folder, tokens, vocab, settings.positions) for folder in (one, other))
    return [_difference(length, *pair) for length, *pair in zip(lengths, left, right, strict=True)]


def logit_table(rows: list[LogitDifference]) -> str:
    """The differences, one sequence a line."""
    cells = [
        (
            row.length,
            *(f"{value:.2e}" for value in (row.largest, row.mean, row.scale)),
            f"{row.same_prediction:.1%}",
        )
        for row in rows
    ]
    return text_table(("length", "largest", "mean", "logit std", "same prediction"), cells, left=0)


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
    from megatron_longrope2.model.loading import load_model, unload_model

    model = load_model(folder).chunks[0]
    device = next(model.parameters()).device
    try:
        yield lambda row: model(row.to(device), torch.arange(row.shape[1], device=device).unsqueeze(0), None)
    finally:
        unload_model()
