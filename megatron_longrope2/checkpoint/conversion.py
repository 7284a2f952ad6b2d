"""Hugging Face folder to Megatron checkpoint and back: streaming, exact, no model built."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.architectures import EMBEDDING
from megatron_longrope2.checkpoint.hf_config import HFConfig, check_args, exported_config, megatron_args
from megatron_longrope2.checkpoint.hf_files import HFTensors, write_safetensors
from megatron_longrope2.checkpoint.hf_folder import TOKENIZER, copy_side_files, write_side_files
from megatron_longrope2.checkpoint.mapping import JoinInPlace, Mapping, Shape, TensorSpec, dtype_name
from megatron_longrope2.checkpoint.megatron_files import MegatronTensors, Part, write_checkpoint
from megatron_longrope2.checkpoint.settings import ExportSettings, ImportSettings
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import check_space, replacing
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import RopeFactors
from megatron_longrope2.tables import text_table

# Buffers that old transformers versions saved; models compute them.
_FREE_NAMES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")


@dataclass(frozen=True)
class Row(TensorSpec):
    """A Megatron parameter and the Hugging Face names that it corresponds to."""

    hf: tuple[str, ...]


def mapping_table(rows: list[Row]) -> str:
    """The mapping table, one Megatron parameter a line."""
    cells = [(row.name, list(row.shape), dtype_name(row.dtype), " + ".join(row.hf)) for row in rows]
    return text_table(("Megatron", "shape", "dtype", "Hugging Face"), cells, left=4)


def import_hf(settings: ImportSettings, *, dry_run: bool = False) -> list[Row]:
    """Convert a Hugging Face model folder to a Megatron `torch_dist` checkpoint.

    Args:
        settings: what to convert, and how.
        dry_run: check everything and write nothing.

    Returns:
        The mapping table.

    Raises:
        InputError: anything about the input that cannot be converted exactly; nothing is left half-written.
    """
    config, tensors = HFConfig.read(settings.hf_dir), HFTensors(settings.hf_dir)
    factors = _import_factors(config, settings)
    dims = config.dims().padded(settings.vocab_divisible_by)
    original = factors.original_length if factors else settings.original_length
    dims = replace(dims, original_length=original or dims.original_length)
    config.check_window(dims.original_length)
    _check_weights(config, tensors)
    make = _Maker(tensors, dims, settings)
    rows = [make.row(mapping) for mapping in config.mappings()]
    if dry_run:
        return rows
    check_space(settings.save_dir, sum(row.nbytes for row in rows))
    args = megatron_args(
        config,
        dims,
        factors=factors,
        params_dtype=rows[0].dtype,
        tokenizer_folder=settings.save_dir / TOKENIZER,
    )
    parts = [
        Part(row, layer, partial(make.tensor, mapping, layer))
        for row, mapping in zip(rows, config.mappings(), strict=True)
        for layer in mapping.layers(dims)
    ]
    with replacing(settings.save_dir) as partial_dir:
        partial_dir.mkdir()
        copy_side_files(config.path.parent, partial_dir / TOKENIZER)
        write_checkpoint(partial_dir, parts, args)
    return rows


def _import_factors(config: HFConfig, settings: ImportSettings) -> RopeFactors | None:
    if settings.rope_factors is not None:
        return config.load_factors(settings.rope_factors, settings.original_length)
    factors = config.rope.factors
    if factors is not None and settings.original_length not in (None, factors.original_length):
        raise InputError(
            f"{config.path}: original_max_position_embeddings: {factors.original_length} contradicts "
            f"--original-length {settings.original_length}; leave the option out, or give --rope-factors"
        )
    return factors


def _check_weights(config: HFConfig, tensors: HFTensors) -> None:
    """Every tensor of the table is there with its shape, and no other."""
    found = {name: spec.shape for name, spec in tensors.specs.items() if not name.endswith(_FREE_NAMES)}
    head = found.pop("lm_head.weight", None) if config.tied else None
    if head and not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
        raise InputError(
            f"{tensors.files['lm_head.weight']}: lm_head.weight: differs from the embedding, but "
            "config.json says tie_word_embeddings; set it to false"
        )
    expected = {name: shape for name, shape, _ in config.tensors()}
    check_tensors(found, expected, tensors.folder, config.model_type)


class _Maker:
    """Makes Megatron tensors from Hugging Face's when the writer asks for them."""

    def __init__(self, tensors: HFTensors, dims: ModelDims, settings: ImportSettings) -> None:
        self.tensors, self.dims = tensors, dims
        self.dtype, self.allow_nonfinite = dtype_option(settings.dtype), settings.allow_nonfinite
        self._join = JoinInPlace()

    def row(self, mapping: Mapping) -> Row:
        """A whole Megatron parameter, layers stacked."""
        layers = mapping.layers(self.dims)
        specs = [self.tensors.specs[name] for layer in layers for name in mapping.hf_names(layer)]
        if self.dtype is None and (odd := [spec for spec in specs if spec.dtype != specs[0].dtype]):
            raise InputError(
                f"{self.tensors.files[odd[0].name]}: {odd[0].name}: {odd[0].dtype} beside "
                f"{specs[0].dtype}; Megatron stacks the layers in one dtype: give --dtype"
            )
        shape = mapping.stacked_shape(self.dims)
        return Row(mapping.megatron, shape, self.dtype or specs[0].dtype, mapping.hf)

    def tensor(self, mapping: Mapping, layer: int | None) -> Tensor:
        """One layer of it, which holds until the next one is made."""
        parts = [
            converted(
                self.tensors[name],
                self.dtype,
                allow_nonfinite=self.allow_nonfinite,
                source=f"{self.tensors.files[name]}: {name}",
            )
            for name in mapping.hf_names(layer)
        ]
        return mapping.to_megatron(parts, self.dims, self._join)


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
            Row(mapping.megatron, mapping.stacked_shape(self.dims), self._dtype(mapping), mapping.hf)
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


def _export_factors(
    config: HFConfig, tensors: MegatronTensors, rope_factors: str | Path | None
) -> RopeFactors | None:
    if rope_factors is not None:
        return config.load_factors(rope_factors, getattr(tensors.args, "original_length", None))
    factors = tensors.factors
    # A run without factors trains the plain RoPE, which config.json states by having no rope type.
    plain = factors is not None and factors.method == "none" and config.rope.factors is None
    return None if plain else factors


def dtype_option(name: str) -> torch.dtype | None:
    """The dtype that `--dtype` names; None for "auto"."""
    return None if name == "auto" else getattr(torch, name)


def converted(tensor: Tensor, dtype: torch.dtype | None, *, allow_nonfinite: bool, source: str) -> Tensor:
    """The tensor in another dtype (None: its own), with finite numbers only unless others are allowed.

    Raises:
        InputError: it holds NaN or infinity, perhaps because the dtype is too narrow.
    """
    tensor = tensor if dtype is None else tensor.to(dtype)
    # Both ends are NaN where any number is; torch.isfinite on the whole takes twenty times as long.
    if not allow_nonfinite and not torch.stack(tensor.aminmax()).isfinite().all():
        in_dtype = "" if dtype is None else f" in {dtype_name(dtype)}"
        raise InputError(
            f"{source}: holds NaN or infinity{in_dtype}; pass --allow-nonfinite to convert it all the same"
        )
    return tensor


def check_tensors(found: dict[str, Shape], expected: dict[str, Shape], folder: Path, model_type: str) -> None:
    """Refuse weights that are not those of a model.

    Args:
        found, expected: name to shape.
        folder: what was read.
        model_type: the model's architecture.

    Raises:
        InputError: a tensor is missing, superfluous, or has another shape.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"{folder}: {_some(missing)}: missing; is it a whole {model_type} model?")
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(
            f"{folder}: {_some(extra)}: not in a {model_type} model; config.json and weights do not belong "
            "together"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(
                f"{folder}: {name}: has shape {list(found[name])}, config.json asks for {list(shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
