"""The options of `longrope2 import`, `export` and `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt

from megatron_longrope2.errors import InputError
from megatron_longrope2.model.settings import LayoutSettings

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@Parameter(name="*", group="Conversion")
@dataclass(frozen=True)
class ImportSettings:
    """A conversion of a Hugging Face model folder to a Megatron checkpoint.

    Attributes:
        hf_dir: The model folder, with config.json, safetensors files and tokenizer.
        save_dir: The new folder, which Megatron's --load will name.
        rope_factors: A factor file, or the name of a published set. If not given, the RoPE is what
            config.json says.
        original_length: The window that the model was pre-trained on, in tokens. If not given, it is what the
            factors or config.json say.
        dtype: The dtype of the weights; auto keeps each as it is.
        vocab_divisible_by: Zero rows pad the vocabulary to a multiple of this, so that tensor-parallel ranks
            get equal shares.
        allow_nonfinite: Convert weights that hold NaN or infinity.
    """

    hf_dir: Path
    save_dir: Path
    rope_factors: Path | None = None
    original_length: PositiveInt | None = None
    dtype: Dtype = "auto"
    vocab_divisible_by: PositiveInt = 128
    allow_nonfinite: bool = False


@Parameter(name="*", group="Conversion")
@dataclass(frozen=True)
class ExportSettings:
    """A conversion of a Megatron checkpoint of any parallel layout to a Hugging Face model folder.

    Attributes:
        load_dir: The folder that --save of a training run, or --save-dir of `longrope2 import`, named; its
            latest checkpoint is taken. One checkpoint in it can be named too.
        save_dir: The new folder.
        rope_factors: A factor file, or the name of a published set. If not given, the factors are what the
            checkpoint holds.
        base_dir: The folder with config.json and tokenizer of the model that training began from. If not
            given, it is where the checkpoint says that its tokenizer is.
        dtype: The dtype of the weights; auto keeps each as it is.
        max_shard_size: The size at which a new safetensors file begins, in GB.
        allow_nonfinite: Convert weights that hold NaN or infinity.
        split_attention_factor: Allow attention factors that differ between the windows. vLLM reads the pair;
            plain transformers applies the long one to both windows.
        as_llama: Write a Phi3 or Mistral under Llama's names. transformers 4 refuses a rescaled Phi3.
    """

    load_dir: Path
    save_dir: Path
    rope_factors: Path | None = None
    base_dir: Path | None = None
    dtype: Dtype = "auto"
    max_shard_size: PositiveFloat = 5.0
    allow_nonfinite: bool = False
    split_attention_factor: bool = False
    as_llama: bool = False


@Parameter(name="*", group="Logits")
@dataclass(frozen=True)
class VerifySettings:
    """How the logits of two checkpoints are compared.

    Attributes:
        lengths: The lengths of the random sequences, in tokens. If not given, they are the original length
            and, where the RoPE is rescaled, twice the original length.
        positions: How many positions of each sequence are compared.
        seed: The seed of the random tokens.
        tolerance: The largest logit difference that passes; both models compute in float32 without --bf16.
        layout: How the Megatron models are run.
    """

    lengths: tuple[PositiveInt, ...] = ()
    positions: PositiveInt = 64
    seed: int = 0
    tolerance: PositiveFloat = 1e-4
    layout: LayoutSettings = LayoutSettings()

    def __post_init__(self) -> None:
        if 1 in self.lengths:
            raise InputError("--lengths: 1 token leaves none to predict; use 2 or more")
