"""The main rank works, and every rank has the result."""

import re

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
    # Both ranks write to one file: what they say may share a line.
    told = re.findall(r"process (\d+), refused by 0", torchrun(2, "tests/ranks_worker.py"))
    assert len(told) == 2
    assert told[0] == told[1]
