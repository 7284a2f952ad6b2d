"""`longrope2 needles` writes needle samples as training documents."""

from pathlib import Path

import pytest
from cyclopts import CycloptsError

from megatron_longrope2.cli import longrope2
from megatron_longrope2.data.documents import draw_books
from megatron_longrope2.data.needles import NeedleSampler
from megatron_longrope2.data.pools import open_pool
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_cpu"


def run(**options: object) -> None:
    good = {"tokenizer": EXAMPLE / "base", "books": EXAMPLE / "books/held_out", "lengths": 300}
    words = ["needles"]
    for name, value in (good | options).items():
        words += [f"--{name.replace('_', '-')}", *str(value).split()]
    longrope2()(words, exit_on_error=False, print_error=False)


def test_writes_the_samples_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "train"
    depths = [0, 0.5, 1]
    run(
        output=output,
        lengths="300 400",
        samples=6,
        needle_depths="0 0.5 1",
        keys="held_out",
        seed=3,
    )
    tokenizer = load_tokenizer(EXAMPLE / "base")
    sampler = NeedleSampler(tokenizer, draw_books(EXAMPLE / "books/held_out", 3, 0), seed=3, keys="held_out")
    documents = open_pool(output)
    assert [len(document) for document in documents] == [300] * 3 + [400] * 3
    for sample, document in zip(sampler.samples(6, [300, 400], depths), documents, strict=True):
        assert document.tolist() == sample.tokens.tolist()
    assert "6 samples of 300 / 400 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "absent"}, "absent: no such folder"),
        ({"tokenizer": EXAMPLE / "books"}, "tokenizer: cannot be read; give tokenizer.json"),
        ({"books": "absent.txt"}, "absent.txt: no such file"),
        ({"lengths": 500_000}, "books: the longest has"),
        ({"lengths": ""}, "--lengths"),
        ({"needle_depths": ""}, "--needle-depths"),
        ({"needle_depths": 2}, "depth: 2.0 is not a fraction"),
        ({"samples": 0}, "--samples"),
        ({"keys": "some"}, "--keys"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises((InputError, CycloptsError), match=message):
        run(**({"output": tmp_path / "train"} | options))
    assert not list(tmp_path.iterdir())
