"""The tokenizer of a Hugging Face model folder."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_longrope2.errors import InputError


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Read the fast tokenizer of a local folder; nothing is downloaded.

    Raises:
        InputError: the folder is missing or holds no tokenizer that transformers can read.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give a Hugging Face model folder with tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{folder}: tokenizer: cannot be read; give tokenizer.json and tokenizer_config.json ({reason})"
        ) from error
