"""A checkpoint opens where it is, not where it was written."""

from pathlib import Path

import pytest

from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.settings import ImportSettings
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.loading import load_model, unload_model
from tests.checkpoint.tiny_models import VOCAB, save_model


def test_tokenizer_of_a_moved_checkpoint(tmp_path: Path, megatron: None) -> None:  # noqa: ARG001
    here, there = tmp_path / "here", tmp_path / "there"
    import_hf(ImportSettings(save_model(tmp_path / "hf"), here))
    here.rename(there)
    model = load_model(there)
    assert model.args.tokenizer_model == str(there / "tokenizer")
    assert len(model.tokenizer()) == VOCAB
    unload_model()
    (there / "tokenizer").rename(tmp_path / "gone")
    with pytest.raises(InputError) as refusal:
        load_model(there)
    assert str(refusal.value) == (
        f"{there}: tokenizer_model: {here / 'tokenizer'} is gone; "
        f"copy the tokenizer's files to {there / 'tokenizer'}"
    )
