"""Hugging Face folder to Megatron checkpoint: streaming, exact, no model built."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from megatron_longrope2.checkpoint.conversion import TOKENIZER, Row, check_tensors, converted, dtype_option
from megatron_longrope2.checkpoint.hf_config import HFConfig, megatron_args
from megatron_longrope2.checkpoint.hf_files import HFTensors
from megatron_longrope2.checkpoint.hf_folder import copy_side_files
from megatron_longrope2.checkpoint.mapping import Mapping
from megatron_longrope2.checkpoint.megatron_files import Part, write_checkpoint
from megatron_longrope2.checkpoint.settings import ImportSettings
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import check_space, replacing
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import RopeFactors

# Buffers that old transformers versions saved; models compute them.
_FREE_NAMES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")


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
    factors = _factors(config, settings)
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


def _factors(config: HFConfig, settings: ImportSettings) -> RopeFactors | None:
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
    if config.tied and found.pop("lm_head.weight", None) is not None:
        same = torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
        if not same:
            raise InputError(
                f"{tensors.file_of('lm_head.weight')}: lm_head.weight: differs from the embedding, but "
                "config.json says tie_word_embeddings; set it to false"
            )
    expected = {name: shape for name, shape, _ in config.tensors()}
    check_tensors(found, expected, tensors.folder, config.model_type)


class _Maker:
    """Makes Megatron tensors from Hugging Face's when the writer asks for them."""

    def __init__(self, tensors: HFTensors, dims: ModelDims, settings: ImportSettings) -> None:
        self.tensors, self.dims = tensors, dims
        self.dtype, self.allow_nonfinite = dtype_option(settings.dtype), settings.allow_nonfinite

    def row(self, mapping: Mapping) -> Row:
        """A whole Megatron parameter, layers stacked."""
        layers = mapping.layers(self.dims)
        specs = [self.tensors.specs[name] for layer in layers for name in mapping.hf_names(layer)]
        if self.dtype is None and (odd := [spec for spec in specs if spec.dtype != specs[0].dtype]):
            raise InputError(
                f"{self.tensors.file_of(odd[0].name)}: {odd[0].name}: {odd[0].dtype} beside "
                f"{specs[0].dtype}; Megatron stacks the layers in one dtype: give --dtype"
            )
        shape = mapping.stacked_shape(self.dims)
        return Row(mapping.megatron, shape, self.dtype or specs[0].dtype, mapping.hf)

    def tensor(self, mapping: Mapping, layer: int | None) -> Tensor:
        """One layer of it."""
        parts = [
            converted(
                self.tensors[name],
                self.dtype,
                allow_nonfinite=self.allow_nonfinite,
                source=f"{self.tensors.file_of(name)}: {name}",
            )
            for name in mapping.hf_names(layer)
        ]
        return mapping.to_megatron(parts, self.dims)
