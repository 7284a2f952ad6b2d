"""The loss of a micro-batch counts the tokens that the mask lets count."""

import pytest
import torch

from megatron_longrope2.training import loop
from megatron_longrope2.training.batch import Batch
from megatron_longrope2.training.loop import batch_loss
from tests.training.test_batch import batch


def no_report(batch: Batch, masked: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG001
    return {}


def test_masked_tokens_do_not_count() -> None:
    micro_batch = batch([2, 4])
    assert micro_batch.loss_mask is not None
    micro_batch.loss_mask[0, 1] = 0
    losses = torch.tensor([[1.0, 100.0, 2.0, 4.0]], requires_grad=True)
    loss, tokens, report = batch_loss(micro_batch, no_report, False, losses)
    assert loss.item() == 7
    assert tokens.item() == 3
    assert not tokens.is_floating_point()
    assert report["lm loss"].tolist() == [7, 3]
    loss.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[1, 0, 1, 1]]


def test_reports_carry_no_gradient_and_stand_beside_the_loss() -> None:
    def report(batch: Batch, masked: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG001
        return {"largest": masked.max()}

    losses = torch.tensor([[1.0, 3.0]], requires_grad=True)
    reports = batch_loss(batch([2]), report, False, losses)[2]
    assert reports["largest"].item() == 3
    assert not any(value.requires_grad for value in reports.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_shown_to_megatrons_checks(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rejected = []

    class Checks:
        def validate_result(self, result, rejection_func, message, **_) -> None:  # type: ignore[no-untyped-def]
            if rejection_func(result):
                rejected.append(message)

    monkeypatch.setattr(loop, "get_rerun_state_machine", Checks)
    batch_loss(batch([2]), no_report, True, torch.tensor([[1.0, bad]]))
    assert len(rejected) == 1
    assert ("NaN" in rejected[0]) == (bad != bad)
