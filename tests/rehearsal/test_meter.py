"""What the meter counts, on tensors of the CPU."""

import pytest
import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_longrope2.rehearsal.meter import Meter, _sent

MIB = 1 << 20


def mebibytes(count: int) -> torch.Tensor:
    return torch.zeros(count * MIB, dtype=torch.uint8)


def test_peak_is_of_what_is_alive_at_once() -> None:
    with Meter("cpu") as meter:
        kept = mebibytes(3)
        for _ in range(5):
            mebibytes(2)
        view = kept[: 1 << 10]
        del kept
        mebibytes(1)
        del view
        mebibytes(4)
    assert meter.peak == 5 * MIB
    assert [one.size for one in meter.at_peak()] == [3 * MIB, 2 * MIB]
    assert meter.peak_operation.startswith("zeros")


def test_what_the_backward_pass_reads_is_an_activation_and_a_weight_stays_one() -> None:
    weight = torch.ones(64, 64, requires_grad=True)
    with Meter("cpu") as meter:
        meter.label([weight], "weights")
        states = torch.ones(64, 64) + 1
        loss = (states @ weight).exp().sum()
    categories = {one.category for one in meter.at_peak()}
    loss.backward()
    assert categories == {"weights", "activations", "temporaries"}
    assert meter.at_peak()[0].category in ("weights", "activations")
    assert sum(one.category == "activations" for one in meter.allocations) == 2


def test_numbers_read_back_are_found_with_their_line() -> None:
    with Meter("cpu") as meter:
        assert int(torch.ones(3).sum()) == 3
        assert not bool(torch.zeros(1))
    assert sum(meter.read_backs.values()) == 2
    assert not any(in_layer for _, in_layer in meter.read_backs)


class Waiting(TransformerLayer):
    """A layer that reads a number from its device."""

    __call__ = torch.nn.Module.__call__

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * states.sum().item()


def test_a_layer_that_waits_is_told_from_other_code() -> None:
    with Meter("cpu") as meter:
        Waiting()(torch.ones(3))
    assert list(meter.read_backs.values()) == [1]
    assert all(in_layer for _, in_layer in meter.read_backs)
    assert meter.launches == [2]  # the sum and the product


@pytest.mark.parametrize(
    ("name", "given", "sent"),
    [
        ("allreduce", 100, 150),
        ("allreduce_coalesced", 100, 150),
        ("allgather_base", 125, 75),  # 100 in all, of them 25 its own
        ("reduce_scatter_tensor_coalesced", 125, 75),
        ("alltoall_base", 200, 75),
        ("send", 100, 100),
        ("broadcast", 100, 100),
    ],
)
def test_bytes_that_a_rank_of_four_sends(name: str, given: int, sent: int) -> None:
    assert _sent(name, given, 4) == sent
