"""Hugging Face folder to Megatron checkpoint: streaming, exact, no model built."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from megatron_longrope2.checkpoint.conversion import TOKENIZER, Row, in_dtype, is_finite, nbytes, some
from megatron_longrope2.checkpoint.hf_config import HFConfig, megatron_args
from megatron_longrope2.checkpoint.hf_files import HFTensors, check_space
from megatron_longrope2.checkpoint.hf_folder import copy_side_files
from megatron_longrope2.checkpoint.mapping import Block, Mapping, Shape
from megatron_longrope2.checkpoint.megatron_files import Chunk, Stack, write_checkpoint
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import replacing
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import RopeFactors

_FREE_NAMES = ("rotary_emb.inv_freq",)
"""Endings of tensors that old Hugging Face folders hold and no model needs."""


def import_hf(
    hf_dir: str | Path,
    save_dir: str | Path,
    *,
    rope_factors: str | Path | None = None,
    original_length: int | None = None,
    dtype: torch.dtype | None = None,
    vocab_divisible_by: int = 128,
    allow_nonfinite: bool = False,
    dry_run: bool = False,
) -> list[Row]:
    """Convert a Hugging Face model folder to a Megatron `torch_dist` checkpoint.

    Args:
        hf_dir: holds config.json, safetensors files, tokenizer files.
        save_dir: new folder; afterwards what `--load` names.
        rope_factors: factor file or published name; default: what config.json says.
        original_length: pre-trained window, tokens; default: what the factors say, else
            `max_position_embeddings`.
        dtype: of the weights; default: as they are.
        vocab_divisible_by: the vocabulary is padded with zero rows to a multiple of it, so that tensor
            parallel ranks get equal shares.
        allow_nonfinite: convert weights that hold NaN or infinity.
        dry_run: check everything and write nothing.

    Returns:
        The mapping table.

    Raises:
        InputError: anything about the input that cannot be converted exactly; nothing is left half-written.
    """
    config, tensors, save_dir = HFConfig.read(hf_dir), HFTensors(hf_dir), Path(save_dir)
    factors = _import_factors(config, rope_factors, original_length)
    original = factors.original_length if factors else original_length
    original = original or int(config.full["max_position_embeddings"])
    config.check_window(original)
    dims = config.dims().padded(vocab_divisible_by)
    _check_names(config, tensors, dims)
    make = _Maker(tensors, dims, dtype, allow_nonfinite)
    stacks = {mapping.megatron: make.stack(mapping) for mapping in config.mappings()}
    rows = [
        Row(mapping.megatron, stacks[mapping.megatron].shape, stacks[mapping.megatron].dtype, mapping.hf)
        for mapping in config.mappings()
    ]
    if dry_run:
        return rows
    check_space(save_dir, sum(nbytes(stack.shape, stack.dtype) for stack in stacks.values()))
    args = megatron_args(
        config,
        dims,
        factors=factors,
        original_length=original,
        params_dtype=rows[0].dtype,
        tokenizer_folder=save_dir / TOKENIZER,
    )
    with replacing(save_dir) as partial_dir:
        partial_dir.mkdir()
        copy_side_files(config.path.parent, partial_dir / TOKENIZER)
        chunks = sum(len(stack.chunks) for stack in stacks.values())
        with tqdm(total=chunks, desc="to Megatron", unit="tensor") as make.progress:
            write_checkpoint(partial_dir, stacks, args)
    return rows


def _import_factors(
    config: HFConfig, rope_factors: str | Path | None, original_length: int | None
) -> RopeFactors | None:
    if rope_factors is not None:
        return config.load_factors(rope_factors, original_length)
    factors = config.factors()
    if factors is not None and original_length not in (None, factors.original_length):
        raise InputError(
            f"{config.path}: original_max_position_embeddings: {factors.original_length} contradicts "
            f"--original-length {original_length}; leave the option out, or give --rope-factors"
        )
    return factors


def _check_names(config: HFConfig, tensors: HFTensors, dims: ModelDims) -> None:
    """Every tensor of the table is there with its shape, and no other."""
    expected: dict[str, Shape] = {}
    for mapping in config.mappings():
        for layer in range(dims.num_layers if mapping.in_layers else 1):
            expected |= dict(zip(mapping.hf_names(layer), mapping.hf_shapes(dims), strict=True))
    found = {name for name in tensors.specs if not name.endswith(_FREE_NAMES)}
    if config.tied and "lm_head.weight" in found:
        found.discard("lm_head.weight")
        if not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            raise InputError(
                f"{tensors.file_of('lm_head.weight')}: lm_head.weight: differs from the embedding, but "
                "config.json says tie_word_embeddings; set it to false"
            )
    if missing := sorted(expected.keys() - found):
        raise InputError(f"{tensors.folder}: {some(missing)}: missing; the model is incomplete")
    if extra := sorted(found - expected.keys()):
        raise InputError(
            f"{tensors.folder}: {some(extra)}: not in a {config.architecture.model_type} model; "
            "config.json and weights do not belong together"
        )
    for name, shape in expected.items():
        if tensors.specs[name].shape != shape:
            raise InputError(
                f"{tensors.file_of(name)}: {name}: has shape {list(tensors.specs[name].shape)}, "
                f"config.json asks for {list(shape)}"
            )


class _Maker:
    """Makes Megatron tensors from Hugging Face's when the writer asks for them."""

    def __init__(
        self, tensors: HFTensors, dims: ModelDims, dtype: torch.dtype | None, allow_nonfinite: bool
    ) -> None:
        self.tensors, self.dims, self.dtype, self.allow_nonfinite = tensors, dims, dtype, allow_nonfinite
        self.progress: tqdm | None = None

    def stack(self, mapping: Mapping) -> Stack:
        shape = mapping.megatron_shape(self.dims)
        layers = self.dims.num_layers if mapping.in_layers else 1
        chunks = {}
        for layer in range(layers):
            row = 0
            for block in mapping.blocks(self.dims):
                names = [mapping.hf_names(layer)[n] for n in block.sources]
                size: Shape = (block.rows, *shape[1:])
                offset: Shape = (row, *(0,) * (len(shape) - 1))
                if mapping.in_layers:
                    size, offset = (1, *size), (layer, *offset)
                chunks[offset] = Chunk(size, partial(self._block, block, names, size))
                row += block.rows
        return Stack((layers, *shape) if mapping.in_layers else shape, self._dtype(mapping), chunks)

    def _dtype(self, mapping: Mapping) -> torch.dtype:
        layers = range(self.dims.num_layers if mapping.in_layers else 1)
        specs = [self.tensors.specs[name] for n in layers for name in mapping.hf_names(n)]
        if self.dtype is None and len({spec.dtype for spec in specs}) > 1:
            odd = next(spec for spec in specs if spec.dtype != specs[0].dtype)
            raise InputError(
                f"{self.tensors.file_of(odd.name)}: {odd.name}: {odd.dtype} beside {specs[0].dtype}; "
                "Megatron stacks the layers in one dtype: give --dtype"
            )
        return self.dtype or specs[0].dtype

    def _block(self, block: Block, names: list[str], size: Shape) -> Tensor:
        parts = []
        for name in names:
            part = self.tensors[name]
            part = part if self.dtype is None else part.to(self.dtype)
            if not self.allow_nonfinite and not is_finite(part):
                raise InputError(
                    f"{self.tensors.file_of(name)}: {name}: holds NaN or infinity{in_dtype(self.dtype)}; "
                    "pass --allow-nonfinite to convert it all the same"
                )
            parts.append(part)
        if self.progress is not None:
            self.progress.update()
        return block.make(parts).view(size)
