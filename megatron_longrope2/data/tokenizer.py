"""The tokenizer of a Hugging Face model folder, and the check that a pool was made with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """Read the fast tokenizer of a local folder; nothing is downloaded.

    Raises:
        InputError: the folder is missing or holds no tokenizer that transformers can read.
    """
    # This import takes seconds.
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give a Hugging Face model folder with tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{folder}: tokenizer: cannot be read; give tokenizer.json and tokenizer_config.json ({reason})"
        ) from error


def check_same_tokenizer(manifest: str | Path, folder: str | Path) -> None:
    """Refuse data that was made with another tokenizer than the model's, by the hash of the tokenizer's file.

    Args:
        manifest: the manifest.json that preprocessing wrote.
        folder: the model's tokenizer. Nothing is compared if the folder has no file of the kind that the data
            was made with (LLaMA 3 comes with a `tokenizer.json` and with tiktoken ranks that agree).

    Raises:
        InputError: the file in `folder` is another one.
    """
    made = read_json(manifest)["tokenizer"]
    file = Path(folder) / ("tokenizer.json" if made["kind"] == "huggingface" else "tokenizer.model")
    if file.is_file() and sha256(file) != made["sha256"]:
        raise InputError(
            f"{manifest}: tokenizer: the data was made with {made['path']}, which is not the model's {file}; "
            f"preprocess the text again with --tokenizer {folder}"
        )
