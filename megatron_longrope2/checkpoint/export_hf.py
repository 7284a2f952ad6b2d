"""Megatron checkpoint to Hugging Face folder: streaming, exact, no model built."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.conversion import TOKENIZER, Row, in_dtype, is_finite, some
from megatron_longrope2.checkpoint.hf_config import HFConfig, check_args, exported_config
from megatron_longrope2.checkpoint.hf_files import TensorSpec, check_space, write_safetensors
from megatron_longrope2.checkpoint.hf_folder import write_side_files
from megatron_longrope2.checkpoint.mapping import Mapping
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import replacing
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import RopeFactors


def export_hf(
    load_dir: str | Path,
    save_dir: str | Path,
    *,
    rope_factors: str | Path | None = None,
    base_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    allow_nonfinite: bool = False,
    split_attention: bool = False,
    as_llama: bool = False,
    dry_run: bool = False,
) -> list[Row]:
    """Convert a Megatron `torch_dist` checkpoint, of any parallel layout, to a Hugging Face model folder.

    Args:
        load_dir: what `--save` of a training run, or `import_hf`, named; the latest checkpoint is taken.
        save_dir: new folder.
        rope_factors: factor file or published name; default: what the checkpoint holds.
        base_dir: config.json and tokenizer of the model that training began from; default: where the
            checkpoint's `tokenizer_model` points.
        dtype: of the weights; default: as they are.
        max_shard_bytes: size at which a new safetensors file begins.
        allow_nonfinite: convert weights that hold NaN or infinity.
        split_attention: allow attention factors that differ between the windows, which plain transformers
            cannot read.
        as_llama: write a Phi3 or Mistral under Llama's names, which more readers can rescale.
        dry_run: check everything and write nothing.

    Returns:
        The mapping table.

    Raises:
        InputError: anything about the input that cannot be converted exactly; nothing is left half-written.
    """
    source, save_dir = open_checkpoint(load_dir, base_dir, rope_factors), Path(save_dir)
    if as_llama:
        source = replace(source, config=source.config.as_llama())
    specs = source.specs(dtype)
    config = exported_config(source.config, source.factors, specs[0].dtype, split_attention=split_attention)
    if dry_run:
        return source.rows(dtype)
    check_space(save_dir, sum(spec.nbytes for spec in specs))
    with replacing(save_dir) as partial_dir:
        write_side_files(source.config.path.parent, partial_dir, config, source.factors, source.tensors)
        parts = source.hf_tensors(dtype, allow_nonfinite)
        with tqdm(total=len(specs), desc="to Hugging Face", unit="tensor") as bar:
            write_safetensors(partial_dir, specs, _counted(parts, bar.update), max_shard_bytes)
    return source.rows(dtype)


@dataclass(frozen=True)
class MegatronSource:
    """A Megatron checkpoint with the Hugging Face configuration that it belongs to."""

    config: HFConfig
    tensors: MegatronTensors
    dims: ModelDims
    factors: RopeFactors | None

    def rows(self, dtype: torch.dtype | None = None) -> list[Row]:
        """The mapping table."""
        return [
            Row(
                mapping.megatron,
                self.tensors.shape(mapping.megatron),
                dtype or self.tensors.dtype(mapping.megatron),
                mapping.hf,
            )
            for mapping in self.config.mappings()
        ]

    def specs(self, dtype: torch.dtype | None = None) -> list[TensorSpec]:
        """The Hugging Face tensors that it holds, in their order."""
        return [
            TensorSpec(name, shape, dtype or self.tensors.dtype(mapping.megatron))
            for mapping, layer in self._steps()
            for name, shape in zip(mapping.hf_names(layer), mapping.hf_shapes(self.dims), strict=True)
        ]

    def hf_tensors(self, dtype: torch.dtype | None, allow_nonfinite: bool) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and tensors, one Megatron tensor in memory at a time.

        Raises:
            InputError: data are missing or damaged, or hold NaN or infinity where that is not allowed.
        """
        for mapping, layer in self._steps():
            names, row = iter(mapping.hf_names(layer)), 0
            for block in mapping.blocks(self.dims):
                if block.split is not None:
                    index = layer if mapping.in_layers else None
                    tensor = self.tensors.read(mapping.megatron, index, row, block.rows)
                    tensor = tensor if dtype is None else tensor.to(dtype)
                    if not allow_nonfinite and not is_finite(tensor):
                        where = mapping.megatron + (f", layer {layer}" if mapping.in_layers else "")
                        raise InputError(
                            f"{self.tensors.folder}: {where}: holds NaN or infinity{in_dtype(dtype)}; "
                            "pass --allow-nonfinite to convert it all the same"
                        )
                    parts = block.split(tensor)
                    yield from zip(islice(names, len(parts)), parts, strict=True)
                row += block.rows

    def _steps(self) -> Iterator[tuple[Mapping, int]]:
        """Mappings with their layers, layer by layer, as Hugging Face files are ordered."""
        mappings = self.config.mappings()
        first = next(n for n, mapping in enumerate(mappings) if mapping.in_layers)
        inside = [mapping for mapping in mappings if mapping.in_layers]
        yield from ((mapping, 0) for mapping in mappings[:first])
        yield from ((mapping, layer) for layer in range(self.dims.num_layers) for mapping in inside)
        yield from ((mapping, 0) for mapping in mappings[first:] if not mapping.in_layers)


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
    dims = config.dims().padded(_padded_vocab_size(tensors, config))
    _check_stacks(config, tensors, dims)
    return MegatronSource(config, tensors, dims, _export_factors(config, tensors, rope_factors))


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


def _padded_vocab_size(tensors: MegatronTensors, config: HFConfig) -> int:
    name = "embedding.word_embeddings.weight"
    vocab = int(config.full["vocab_size"])
    rows = tensors.shape(name)[0] if name in tensors.names() else 0
    if rows < vocab:
        raise InputError(f"{tensors.folder}: {name}: {rows} rows, config.json's vocab_size is {vocab}")
    return rows


def _check_stacks(config: HFConfig, tensors: MegatronTensors, dims: ModelDims) -> None:
    expected = {}
    for mapping in config.mappings():
        shape = mapping.megatron_shape(dims)
        expected[mapping.megatron] = (dims.num_layers, *shape) if mapping.in_layers else shape
    found = tensors.names()
    if missing := sorted(expected.keys() - found):
        raise InputError(
            f"{tensors.folder}: {some(missing)}: missing; is it a {config.architecture.model_type}?"
        )
    if extra := sorted(found - expected.keys()):
        raise InputError(
            f"{tensors.folder}: {some(extra)}: has no place in a {config.architecture.model_type} model"
        )
    for name, shape in expected.items():
        if tensors.shape(name) != shape:
            raise InputError(
                f"{tensors.folder}: {name}: has shape {list(tensors.shape(name))}, "
                f"config.json asks for {list(shape)}"
            )


def _export_factors(
    config: HFConfig, tensors: MegatronTensors, rope_factors: str | Path | None
) -> RopeFactors | None:
    if rope_factors is not None:
        return config.load_factors(rope_factors, getattr(tensors.args, "original_length", None))
    saved = getattr(tensors.args, "longrope2_factors", None)
    if saved is None:
        return None
    factors = RopeFactors.from_dict(saved, source=f"{tensors.folder}: longrope2_factors")
    # The un-rescaled RoPE, which a run without factors trains: config.json says the same by saying nothing.
    return None if factors.method == "none" and config.factors() is None else factors


def _counted(
    tensors: Iterator[tuple[str, Tensor]], count: Callable[[], object]
) -> Iterator[tuple[str, Tensor]]:
    for item in tensors:
        yield item
        count()
