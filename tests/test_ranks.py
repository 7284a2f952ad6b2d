"""The main rank works, and every rank has the result."""

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.ranks import on_main
from tests.processes import torchrun


def test_alone_it_is_a_call() -> None:
    assert on_main(lambda: [1, 2]) == [1, 2]

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        on_main(refuse)


def test_every_rank_gets_what_the_main_rank_made() -> None:
    lines = [line for line in torchrun(2, "tests/ranks_worker.py").splitlines() if line.startswith("process")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].endswith(", refused by 0")
