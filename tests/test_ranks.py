"""Without other ranks the main rank's work is done here; the search's tests have several."""

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.ranks import on_main


def test_alone_it_is_a_call() -> None:
    assert on_main(lambda: [1, 2]) == [1, 2]

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        on_main(refuse)
