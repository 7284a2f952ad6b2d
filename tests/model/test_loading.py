"""A checkpoint opens where it is, not where it was written."""

from pathlib import Path

from megatron_longrope2.checkpoint.import_hf import import_hf
from megatron_longrope2.checkpoint.settings import ImportSettings
from tests.checkpoint.test_parity import run_child
from tests.checkpoint.tiny_models import VOCAB, save_model

PROGRAM = """
import sys
from megatron_longrope2 import device
device.install()
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.loading import load_model
try:
    model = load_model(sys.argv[1])
    print("ANSWER", model.args.tokenizer_model, len(model.tokenizer()))
except InputError as error:
    print("ANSWER", error)
"""


def answer(folder: Path) -> str:
    return run_child(["-c", PROGRAM, str(folder)]).split("ANSWER ")[1].strip()


def test_tokenizer_of_a_moved_checkpoint(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    import_hf(ImportSettings(save_model(tmp_path / "hf"), here))
    here.rename(there)
    assert answer(there) == f"{there / 'tokenizer'} {VOCAB}"
    (there / "tokenizer").rename(tmp_path / "gone")
    assert answer(there) == (
        f"{there}: tokenizer_model: {here / 'tokenizer'} is gone; "
        f"copy the tokenizer's files to {there / 'tokenizer'}"
    )
