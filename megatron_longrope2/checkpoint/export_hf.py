"""Megatron checkpoint to Hugging Face folder: streaming, exact, no model built."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.architectures import EMBEDDING
from megatron_longrope2.checkpoint.conversion import TOKENIZER, Row, check_tensors, converted, dtype_option
from megatron_longrope2.checkpoint.hf_config import HFConfig, check_args, exported_config
from megatron_longrope2.checkpoint.hf_files import write_safetensors
from megatron_longrope2.checkpoint.hf_folder import write_side_files
from megatron_longrope2.checkpoint.mapping import Mapping, TensorSpec
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.checkpoint.settings import ExportSettings
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import check_space, replacing
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import RopeFactors


def export_hf(settings: ExportSettings, *, dry_run: bool = False) -> list[Row]:
    """Convert a Megatron `torch_dist` checkpoint, of any parallel layout, to a Hugging Face model folder.

    Args:
        settings: what to convert, and how.
        dry_run: check everything and write nothing.

    Returns:
        The mapping table.

    Raises:
        InputError: anything about the input that cannot be converted exactly; nothing is left half-written.
    """
    source = open_checkpoint(settings.load_dir, settings.base_dir, settings.rope_factors)
    source = replace(source, dtype=dtype_option(settings.dtype))
    if settings.as_llama:
        source = replace(source, config=source.config.as_llama())
    specs, save_dir = source.specs(), settings.save_dir
    config = exported_config(
        source.config, source.factors, specs[0].dtype, split_attention=settings.split_attention_factor
    )
    if not dry_run:
        check_space(save_dir, sum(spec.nbytes for spec in specs))
        with replacing(save_dir) as partial_dir:
            write_side_files(source.config.path.parent, partial_dir, config, source.factors, source.tensors)
            parts = source.hf_tensors(settings.allow_nonfinite)
            parts = tqdm(parts, "to Hugging Face", len(specs), unit="tensor")
            write_safetensors(partial_dir, specs, parts, int(settings.max_shard_size * 1e9))
    return source.rows()


@dataclass(frozen=True)
class MegatronSource:
    """A Megatron checkpoint with the Hugging Face configuration that it belongs to.

    Attributes:
        dtype: what its weights become; None: each stays as it is.
    """

    config: HFConfig
    tensors: MegatronTensors
    dims: ModelDims
    factors: RopeFactors | None
    dtype: torch.dtype | None = None

    def rows(self) -> list[Row]:
        """The mapping table."""
        return [
            Row(
                mapping.megatron, self.tensors.specs[mapping.megatron].shape, self._dtype(mapping), mapping.hf
            )
            for mapping in self.config.mappings()
        ]

    def specs(self) -> list[TensorSpec]:
        """The Hugging Face tensors that it holds, in their order."""
        return [
            TensorSpec(name, shape, self._dtype(mapping)) for name, shape, mapping in self.config.tensors()
        ]

    def _dtype(self, mapping: Mapping) -> torch.dtype:
        return self.dtype or self.tensors.specs[mapping.megatron].dtype

    def hf_tensors(self, allow_nonfinite: bool) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and tensors, one Megatron tensor in memory at a time.

        Raises:
            InputError: data are missing or damaged, or hold NaN or infinity where that is not allowed.
        """
        for mapping, layer in self.config.steps():
            where = f"{self.tensors.folder}: {mapping.megatron}"
            where += "" if layer is None else f", layer {layer}"
            parts = mapping.to_hf(self.tensors.read(mapping.megatron, layer), self.dims)
            for name, part in zip(mapping.hf_names(layer), parts, strict=True):
                yield name, converted(part, self.dtype, allow_nonfinite=allow_nonfinite, source=where)


def open_checkpoint(
    load_dir: str | Path, base_dir: str | Path | None = None, rope_factors: str | Path | None = None
) -> MegatronSource:
    """Read what a checkpoint is, and refuse what cannot be converted; no weights are read.

    Args:
        load_dir, base_dir, rope_factors: as in `export_hf`.

    Raises:
        InputError: no checkpoint, no configuration, or they do not belong together.
    """
    tensors = MegatronTensors(load_dir)
    config = _base_config(tensors, base_dir)
    check_args(config, tensors.args, str(tensors.folder))
    dims, embedding = config.dims(), tensors.specs.get(EMBEDDING.megatron)
    dims = dims.padded(max(dims.vocab_size, embedding.shape[0] if embedding else 0))
    expected = {mapping.megatron: mapping.stacked_shape(dims) for mapping in config.mappings()}
    found = {name: spec.shape for name, spec in tensors.specs.items()}
    check_tensors(found, expected, tensors.folder, config.model_type)
    return MegatronSource(config, tensors, dims, _factors(config, tensors, rope_factors))


def _base_config(tensors: MegatronTensors, base_dir: str | Path | None) -> HFConfig:
    args = tensors.args
    if base_dir is None:
        # A checkpoint may have moved with its folder since `tokenizer_model` was written.
        beside = tensors.folder.parent / TOKENIZER
        recorded = Path(str(getattr(args, "tokenizer_model", None) or ""))
        base_dir = beside if (beside / "config.json").exists() else recorded
        if not (base_dir / "config.json").exists():
            raise InputError(
                f"{tensors.folder}: tokenizer_model: no config.json at {str(recorded)!r}; "
                "give --base-dir, the folder of the model that training began from"
            )
    return HFConfig.read(base_dir)


def _factors(
    config: HFConfig, tensors: MegatronTensors, rope_factors: str | Path | None
) -> RopeFactors | None:
    if rope_factors is not None:
        return config.load_factors(rope_factors, getattr(tensors.args, "original_length", None))
    factors = tensors.factors
    # A run without factors trains the plain RoPE, which config.json states by having no rope type.
    plain = factors is not None and factors.method == "none" and config.rope.factors is None
    return None if plain else factors
