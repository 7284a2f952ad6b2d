"""What preprocessing writes beside the tokens: `manifest.json` for a source, `mix.json` for a mix of them."""

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, NonNegativeInt
from pydantic.dataclasses import dataclass

from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.errors import InputError, naming
from megatron_longrope2.files import read_json, sha256
from megatron_longrope2.rope import Window


@dataclass(frozen=True)
class Pool:
    """Documents for one window, and their share of the segments: `weight` of every `sum(weights)`.

    Attributes:
        path_prefix: the pool's path without `.bin` and `.idx`; in a `mix.json`, relative to it.
        window: "short" (documents of at most `original_length` tokens) or "long" (longer ones).
        weight: a pool of weight 0 is not read.
    """

    path_prefix: str
    window: Window
    weight: NonNegativeInt


class PoolMix(BaseModel):
    """The content of a `mix.json`: pools, and whether they may be read more than once."""

    pools: list[Pool]
    repeat: bool


class BucketSize(BaseModel):
    """What a pool holds."""

    documents: int
    tokens: int


class Manifest(BaseModel):
    """The content of a `manifest.json`: what a folder of pools was made of, and what it holds.

    Attributes:
        settings: what preprocessing was told.
        tokenizer: the tokenizer's file.
        tokenizer_sha256: hash of that file.
        buckets: by name.
        budgets: tokens after which a bucket of that name was full; none where it took all there was.
        documents: number of documents read; like the following counts, 0 where there are budgets: they then
            say only how far the workers got.
        documents_cut: how many of them are in the short bucket in pieces.
        documents_too_long: how many of them are left out, because no bucket takes their length.
        tokens_too_long: tokens of those that are left out.
    """

    settings: PreprocessSettings
    tokenizer: Path
    tokenizer_sha256: str
    buckets: dict[str, BucketSize]
    budgets: dict[str, int] = {}
    documents: int = 0
    documents_cut: int = 0
    documents_too_long: int = 0
    tokens_too_long: int = 0


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder of pools; None if it has none.

    Raises:
        InputError: it is not a file that preprocessing wrote.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    content = read_json(path)
    with naming(path):
        return Manifest.model_validate(content)


def load_mix_pools(path: str | Path) -> tuple[tuple[Pool, ...], bool]:
    """The pools of a `mix.json`, and whether they may be read more than once.

    Raises:
        InputError: it is missing, or not a file that preprocessing wrote.
    """
    content = read_json(path)
    with naming(path):
        mix = PoolMix.model_validate(content)
    folder = Path(path).parent
    pools = tuple(replace(pool, path_prefix=str(folder / pool.path_prefix)) for pool in mix.pools)
    return pools, mix.repeat


def check_pool_tokenizer(folder: Path, tokenizer: str | Path) -> None:
    """Refuse pools that were made with another tokenizer than the model's, by the hash of its file.

    Nothing is compared if the pools have no manifest, or the model has no tokenizer file of the same kind
    (LLaMA 3 comes with a `tokenizer.json` and with tiktoken ranks that agree).

    Args:
        folder: where the pools are.
        tokenizer: the model's folder, or its tokenizer file.

    Raises:
        InputError: the tokenizer is another one, or the manifest is damaged.
    """
    made = load_manifest(folder)
    if made is None:
        return
    file = Path(tokenizer)
    if file.is_dir():
        file /= f"tokenizer{made.tokenizer.suffix}"
    if file.is_file() and sha256(file) != made.tokenizer_sha256:
        raise InputError(
            f"{folder}/manifest.json: tokenizer: the data was made with {made.tokenizer}, which is not the "
            f"model's {file}; preprocess the text again with --tokenizer {tokenizer}"
        )
